"""Exported trials: what transformers loads, in a fresh process and without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_up import write_search
from test_cli import Quarterhour, quarterhour  # noqa: F401
from tiny import tiny_config, write_corpus
from tokenizers import Tokenizer, processors

from quarterhour.analysis.chapters.search.results import search_results
from quarterhour.analysis.model_card import model_card
from quarterhour.analysis.runs import load_run
from quarterhour.data.tokenizer import load_tokenizer
from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.pretrained import ARCHITECTURES, architecture_of
from quarterhour.tune.cli import main
from quarterhour.tune.ledger import TrialSpec, read_spec
from quarterhour.tune.run_reader import read_samples
from quarterhour.tune.start import PastTrial
from quarterhour.tune.trained import Trained, read_trained, write_for_transformers

SWIGLU = {"feed_forward": "swiglu", "positions": "rope", "d_model": 48, "n_heads": 4, "d_ff": 36}
MOE = {**SWIGLU, "feed_forward": "moe", "n_experts": 3, "active_experts": 2}
WINDOWS = {"attention": "window", "window": 3, "full_every": 2, "n_layers": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "rope": {"positions": "rope", "d_model": 48, "n_heads": 4},
    "rope_of_one_pair": {"positions": "rope", "d_model": 24, "n_heads": 6},
    "dropout": {"positions": "rope", "d_model": 32, "dropout": 0.2},
    "odd_heads": {"d_model": 30, "n_heads": 6},
    "heads_of_one": {"d_model": 12, "n_heads": 12, "d_ff": 7},
    "rope_of_the_whole_head": {"positions": "rope-full", "d_model": 48, "n_heads": 4},
    "untied": {"head": "untied", "positions": "rope", "rope_base": 10_000.0, "d_model": 48},
    "relu2": {"feed_forward": "relu2", "d_model": 48, "n_heads": 4, "heads_per_kv": 2},
    "norms_of_heads": {"qk_norm": "rms", "positions": "rope", "d_model": 48},
    "layer_norms": {"norm": "layer", "positions": "rope-full", "d_model": 48, "heads_per_kv": 2},
    "odd_layer_norms": {"norm": "layer", "feed_forward": "relu2", "d_model": 30, "n_heads": 6},
    "swiglu": {**SWIGLU, "heads_per_kv": 2},
    "swiglu_windows": {**SWIGLU, **WINDOWS},
    "swiglu_norms_of_heads": {**SWIGLU, "qk_norm": "rms"},
    "swiglu_norms_of_heads_windows": {**SWIGLU, **WINDOWS, "qk_norm": "rms", "positions": "none"},
    "experts": MOE,
    "experts_norms_of_heads": {**MOE, "qk_norm": "rms", "active_experts": 1},
    "post_norms": {**SWIGLU, "norm_place": "pre-and-post"},
    "post_norms_caps_windows": {
        **SWIGLU, **WINDOWS, "norm_place": "pre-and-post", "soft_cap": 0.5, "heads_per_kv": 2,
    },
    "post_norms_and_of_heads": {
        **SWIGLU, **WINDOWS, "norm_place": "pre-and-post", "qk_norm": "rms", "head": "untied",
    },
}  # fmt: skip
README = (Path(__file__).parents[1] / "tune/README.md").read_text()
TEXT = "The history  of abcd, naïve\n\tdef f(x):  # 日本 🙂"
LOAD = """
import json, socket, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

def no_network(*_):
    raise AssertionError("the network was asked")

socket.socket.connect = no_network
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(json.load(open("windows.json")))
    with torch.no_grad():
        found[folder] = {
            "logits": model(ids).logits,
            "greedy": model.generate(ids[:1, :4], max_new_tokens=12, do_sample=False)[0].tolist(),
            "text_ids": tokenizer(sys.argv[1]).input_ids,
            "text": tokenizer.decode(tokenizer(sys.argv[1]).input_ids),
        }
write = pipeline("text-generation", model=sys.argv[-1])
found[sys.argv[-1]]["written"] = write("The history of")[0]["generated_text"]
torch.save(found, "found.pt")
"""


def adding_tokenizer() -> Tokenizer:
    """The built-in tokenizer, if it put a token before each text."""
    tokenizer = load_tokenizer("builtin")
    tokenizer.add_special_tokens(["<s>"])
    first = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[first]
    )
    return tokenizer


def trained_as(variant: str, folder: Path) -> Trained:
    """A decoder as if it were trained."""
    values = _of_model(VARIANTS[variant])
    spec = TrialSpec(
        name=variant, config=tiny_config(**values), data_fingerprint="f", folder=folder / variant
    )
    decoder, generator = Decoder(spec.config.model, seed=0).eval(), torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Trained(
        past=PastTrial(spec=spec, run=folder, experiment={}),
        decoder=decoder,
        row={},
        tokenizer=load_tokenizer("builtin"),
    )


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers makes of the folders of all variants and of a trained trial."""
    folder = tmp_path_factory.mktemp("reloaded")
    write_corpus(folder / "corpus.jsonl")
    adding_tokenizer().save(str(folder / "adding.json"))
    windows = torch.randint(8_000, (3, 16), generator=torch.Generator().manual_seed(0))
    (folder / "windows.json").write_text(json.dumps(windows.tolist()))
    trained = {variant: trained_as(variant, folder) for variant in VARIANTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variant in VARIANTS:
            write_for_transformers(trained[variant], "a card", folder / variant)
        call(
            patch,
            "run baseline --corpus corpus.jsonl --tokenizer adding.json --max-steps 5 --name run"
            " --set data.seq_len=16 --set data.batch_size=2 --set model.vocab_size=9000"
            " --cpus-per-trial 1",
        )
        call(patch, "export runs/run/baseline/seed0 trial")
        trained["trial"] = read_trained(Path("runs/run/baseline/seed0"))
        environment = {"HF_HUB_OFFLINE": "1", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", "-c", LOAD, TEXT, *trained]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = torch.load("found.pt")
    return {name: (one, windows, found[name], folder / name) for name, one in trained.items()}


def call(patch: pytest.MonkeyPatch, command: str) -> None:
    patch.setattr("sys.argv", ["quarterhour", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.mark.parametrize("variant", [*VARIANTS, "trial"])
@torch.no_grad()
def test_logits_over_whole_windows_and_greedy_text_are_the_trials(
    variant: str, reloaded: dict[str, Any]
):
    trained, ids_BT, found, _ = reloaded[variant]
    model = trained.decoder
    logits = model.logits(model(ids_BT))
    assert logits.std() > 0.01
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-5)
    text = ids_BT[0, :4].tolist()
    for _ in range(12):
        text.append(int(model.logits(model(torch.tensor([text])))[0, -1].argmax()))
    assert found["greedy"] == text


@pytest.mark.parametrize("variant", ["none", "trial"])
def test_the_tokenizer_gives_the_ids_that_the_trial_was_trained_on(
    variant: str, reloaded: dict[str, Any]
):
    found = reloaded[variant][2]
    tokenizer = load_tokenizer("builtin")
    assert found["text_ids"] == tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert found["text"] == TEXT


def test_a_pipeline_writes_text(reloaded: dict[str, Any]):
    written = reloaded["trial"][2]["written"]
    assert written.startswith("The history of")
    assert len(written) > len("The history of")


BAD_INPUT = [
    ("runs/run runs/out", "runs/run is no trial's folder in its run's: give one such as"),
    ("missing out", "missing is no trial's folder"),
    ("runs/run/baseline/seed0 full", "full is not empty: give a new folder"),
    ("runs/run/baseline/seed0 windows.json", "windows.json is not empty: give a new folder"),
    ("runs/run/baseline/seed0 out --tokenizer builtin", "tokenizer builtin is not the one that"),
    ("untrained/run/baseline/seed0 out", "has no checkpoint that can be used"),
    ("runs/run/baseline/seed0 windows.json/out", "windows.json: File exists; choose a folder"),
]


def test_every_architecture_is_tried():
    configs = (tiny_config(**_of_model(values)).model for values in VARIANTS.values())
    assert {architecture_of(config).name for config in configs} == {
        architecture.name for architecture in ARCHITECTURES
    }


def _of_model(values: dict[str, Any]) -> dict[str, Any]:
    return {f"model__{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"attention": "window"}, "lacks model.attention window"),
        ({"soft_cap": 5.0}, "lacks model.soft_cap 5"),
        ({"norm_place": "pre-and-post"}, "lacks model.norm_place pre-and-post"),
        ({"norm": "layer", "feed_forward": "moe"}, "Starcoder2, lacks model.feed_forward moe"),
        ({"qk_norm": "rms", "d_model": 6}, "qk_norm rms of heads of the odd width 3"),
        ({"feed_forward": "swiglu", "norm": "layer", "qk_norm": "rms"}, "lacks model.norm layer"),
    ],
)
def test_parts_that_no_architecture_has_together_are_refused_by_name(
    parts: dict[str, Any], message: str
):
    sizes = {"vocab_size": 8, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8}
    with pytest.raises(ValueError, match=message):
        architecture_of(DecoderConfig(**sizes | parts))


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_what_cannot_be_exported_is_told_in_one_line_and_nothing_is_written(
    arguments: str,
    message: str,
    reloaded: dict[str, Any],
    quarterhour: Quarterhour,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    folder = reloaded["trial"][3].parent
    monkeypatch.chdir(folder)
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full/mine.txt").write_text("mine")
    shutil.copytree(folder / "runs", folder / "untrained", dirs_exist_ok=True)
    for path in (folder / "untrained").rglob("checkpoint.pt"):
        path.unlink()
    code, _, errors = quarterhour("export", *arguments.split())
    assert code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (folder / "out").exists()
    assert [path.name for path in (folder / "full").iterdir()] == ["mine.txt"]


def test_the_model_card_tells_of_the_trial_and_gives_no_path_away(reloaded: dict[str, Any]):
    trained, _, _, folder = reloaded["trial"]
    card = (folder / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["quarterhour"],
    }  # fmt: skip
    figure = f"{trained.row['heldout_bits_per_byte']:.4f}"
    assert " ".join(text.split()).count(f"{figure}, n = 1: no interval |") == 1
    assert "`corpus corpus.jsonl instead of HuggingFaceTB/smollm-corpus:cosmopedia-v2`" in text
    assert "5 of 300 steps, 160 tokens" in text
    assert str(folder.parent) not in card


def test_the_cards_command_gives_the_same_trial(
    reloaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    trained, _, _, folder = reloaded["trial"]
    monkeypatch.chdir(folder.parent)
    _, _, command = (folder / "README.md").read_text().partition("$ quarterhour ")
    call(monkeypatch, command.partition("\n")[0] + " --runs again --name one --cpus-per-trial 1")
    spec = read_spec(Path("again/one/baseline/seed0"))
    assert spec.key == trained.past.spec.key


def test_the_card_of_a_searchs_winner_counts_fresh_seeds_alone(tmp_path: Path):
    run = load_run(write_search(tmp_path / "search", trials=8, fresh=True))
    row = {"step": 1, "heldout_bits_per_byte": 1.25}
    settings = tiny_config().values()
    best = search_results(run).fresh["configuration"].iloc[0]
    fresh = run.rows.loc[run.rows["configuration"].eq(best) & run.rows["seed"].gt(0)]
    last = fresh.groupby("seed")["heldout_bits_per_byte"].last()
    card = model_card(run, best, settings, row, "quarterhour run baseline")
    assert f"{last.mean():.4f}, n = 3, 95 % interval " in card
    assert "datasets:\n- HuggingFaceTB/smollm-corpus\n" in card
    assert "1.2500" in card
    again = {*search_results(run).fresh["configuration"]}
    other = next(name for name in run.trials["configuration"] if name not in again)
    assert "no further seed has been trained" in model_card(run, other, settings, row, "")


def test_a_trial_writes_on_as_its_samples_do(
    reloaded: dict[str, Any],
    quarterhour: Quarterhour,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(reloaded["trial"][3].parent)
    trial = "runs/run/baseline/seed0"
    written = read_samples(Path(trial))[0]
    arguments = ("sample", trial, "--prompt", written["prompt"], "--tokens", "24")
    code, output, errors = quarterhour(*arguments)
    assert (code, errors) == (0, "")
    assert output.rstrip("\n").rstrip("�") == written["continuation"].rstrip("\n").rstrip("�")
    assert quarterhour(*arguments, "--seed", "1")[1] != output
    for value in ("--temperature=-1", "--tokens=0", "--prompt="):
        code, output, errors = quarterhour(*arguments, value)
        assert (code, output, len(errors.splitlines())) == (2, "", 1)


HARNESS = shutil.which("lm_eval", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.slow
@pytest.mark.skipif(not HARNESS, reason="lm_eval is not installed: pip install '.[eval]'")
def test_the_harness_measures_the_bits_per_byte_of_the_trial(
    reloaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    trained, _, _, folder = reloaded["trial"]
    monkeypatch.chdir(folder.parent)
    call(monkeypatch, f"export runs/run/baseline/seed0 {tmp_path / 'my-model'} --heldout")
    (command,) = re.findall(r"^\$ (cd my-model && lm_eval .*)$", README, flags=re.MULTILINE)
    environment = {
        "PATH": f"{Path(str(HARNESS)).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    shell = {"shell": True, "cwd": tmp_path, "env": environment, "text": True}
    done = subprocess.run(f"{command} --device cpu", capture_output=True, **shell)
    assert done.returncode == 0, done.stderr
    (measured,) = re.findall(r"bits_per_byte\|↓ +\|([\d.]+)", done.stdout)
    assert float(measured) == pytest.approx(trained.row["heldout_bits_per_byte"], rel=5e-3)


def test_held_out_documents_of_another_corpus_by_now_are_not_exported(
    reloaded: dict[str, Any],
    quarterhour: Quarterhour,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    shutil.copytree(reloaded["trial"][3].parent, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    write_corpus(Path("corpus.jsonl"), documents=70)
    code, _, errors = quarterhour("export", "runs/run/baseline/seed0", "new", "--heldout")
    assert code == 2
    assert "corpus corpus.jsonl has changed since the trial was trained on it" in errors
    assert not Path("new").exists()
