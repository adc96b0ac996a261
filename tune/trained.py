"""A trained trial in use: its model and its tokenizer, and the folder that transformers loads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from quarterhour.data.decoding import prompt_tokens
from quarterhour.data.files import write_folder, write_text
from quarterhour.data.tokens import DataConfig, prepare_tokens, recorded_tokenizer
from quarterhour.model.decoder import Decoder
from quarterhour.model.sampling import stream_tokens
from quarterhour.tune.run_folder import Row
from quarterhour.tune.run_reader import read_rows
from quarterhour.tune.start import PastTrial, read_past_trial
from quarterhour.tune.training.checkpoint import trained

MODEL_CARD = "README.md"
HELDOUT_TASK = """\
task: quarterhour_heldout
dataset_path: json
dataset_kwargs:
  data_files: lm_eval/heldout.jsonl
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
metadata:
  version: 1.0
"""
"""Bits per byte of one text, as lm-evaluation-harness measures it in the export's folder."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A past trial's decoder, on the CPU, after the updates of `row`, and its tokenizer."""

    past: PastTrial
    decoder: Decoder
    row: Row
    tokenizer: Tokenizer

    @property
    def seq_len(self) -> int:
        """The number of tokens that the decoder was trained to see."""
        return self.past.spec.config.data.seq_len

    def writes(self, prompt: str, *, tokens: int, temperature: float, seed: int) -> Iterator[str]:
        """What the decoder writes after a prompt, piece by piece: see `stream_tokens`.

        Raises ValueError where the tokenizer has no token for the prompt.
        """
        begun = prompt_tokens(self.tokenizer, prompt)
        if not begun:
            raise ValueError(f"--prompt is {prompt!r}: the tokenizer has no token for it")
        text = DecodeStream(ids=begun)
        for token in stream_tokens(
            self.decoder,
            begun,
            new_tokens=tokens,
            seq_len=self.seq_len,
            seed=seed,
            temperature=temperature,
        ):
            yield text.step(self.tokenizer, token) or ""


def read_trained(folder: Path, tokenizer: str | None = None) -> Trained:
    """A trial's decoder, and its run's tokenizer, or a `tokenizer` that is the same elsewhere.

    Raises ValueError where the trial has no checkpoint, or the tokenizer is another.
    """
    past = read_past_trial(folder)
    trainer, data = trained(past.spec), past.experiment["data"]
    return Trained(
        past=past,
        decoder=trainer.model.eval(),
        row=next(row for row in read_rows(folder) if row["step"] == trainer.step),
        tokenizer=recorded_tokenizer(tokenizer or data["tokenizer"], data["tokenizer_hash"]),
    )


def heldout_text(trained: Trained) -> str:
    """The held-out documents of the trial, joined as it saw them.

    Raises ValueError where the corpus is another now, or the tokenizer loses some of their text.
    """
    data = trained.past.experiment["data"]
    counts = {name: data[name] for name in ("train_documents", "heldout_documents")}
    tokens = prepare_tokens(
        DataConfig(corpus=data["corpus"], tokenizer=data["tokenizer"], **counts)
    )
    if tokens.manifest.fingerprint != trained.past.spec.data_fingerprint:
        raise ValueError(f"corpus {data['corpus']} has changed since the trial was trained on it")
    if tokens.manifest.heldout_lost_share:
        raise ValueError("the tokenizer loses text, so there are no bits per byte to compare")
    return trained.tokenizer.decode(tokens.heldout.tolist(), skip_special_tokens=False)


def write_for_transformers(
    trained: Trained, card: str, folder: Path, heldout: str | None = None
) -> None:
    """A new folder for transformers' Auto classes: weights, tokenizer, settings, model `card`.

    The `heldout` text goes there too, as a task of lm-evaluation-harness. Raises ValueError where
    the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a new folder")
    write_folder(folder, lambda new: _fill(new, trained, card, heldout))


def _fill(folder: Path, trained: Trained, card: str, heldout: str | None) -> None:
    import safetensors.torch  # with transformers, which takes seconds to load
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from quarterhour.model.pretrained import pretrained_config, pretrained_weights

    weights = safetensors.torch.save(pretrained_weights(trained.decoder), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    pretrained_config(trained.decoder.config, trained.seq_len).save_pretrained(folder)
    drawn = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=trained.seq_len // 2 or 1)
    drawn.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=trained.tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=trained.seq_len,
    ).save_pretrained(folder)
    write_text(folder / MODEL_CARD, card)
    if heldout is not None:
        (folder / "lm_eval").mkdir()
        write_text(folder / "lm_eval/heldout.jsonl", json.dumps({"text": heldout}) + "\n")
        write_text(folder / "lm_eval/quarterhour_heldout.yaml", HELDOUT_TASK)
