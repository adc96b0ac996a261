"""Peak memory of a trial, predicted from its configuration alone.

A step peaks where its loss is made: all layers have kept what their backward needs, and the loss
holds its blocks. Evaluation keeps no layer's tensors and has no gradients, so it stays below that.

Letters: N tokens of a batch, D d_model, F d_ff, H heads, L layers, V vocabulary, P parameters;
c bytes of a number in the trial's precision.
"""

from model.loss import BLOCK_ENTRIES, BLOCK_ROWS
from search_spaces.point import TrialConfig

FP32 = 4
ACCURACY = 1.15  # measured memory is within this of the predicted, see tests/benchmarks/memory.py
# Resident memory of a process with torch and Ray before a trial, and what its heap holds beside
# what is live: freed blocks that are too small or too scattered to be used again.
PROCESS_BYTES = 450_000_000
HEAP = 1.25
# Of each process on a GPU, beside its tensors: CUDA's context and kernels, assumed and not
# measured; and cuBLAS's workspace, torch's default before compute capability 9.
CUDA_CONTEXT_BYTES = 500_000_000
CUBLAS_WORKSPACE_BYTES = 8_519_680


def peak_bytes(config: TrialConfig, device: str) -> int:
    """Peak of `peak_memory_bytes` of a trial: allocated on "cuda", resident on "cpu"."""
    live = sum(live_bytes(config, device).values())
    if device == "cuda":
        return live + CUBLAS_WORKSPACE_BYTES
    return PROCESS_BYTES + round(HEAP * live)


def live_bytes(config: TrialConfig, device: str) -> dict[str, int]:
    """What a step of a trial holds at its peak, by what it is for; device is "cpu" or "cuda"."""
    model, half = config.model, config.precision != "fp32"
    return {
        "weights": FP32 * model.parameters,
        "optimizer": 2 * FP32 * model.parameters,  # AdamW's moments
        "weight copies": _bytes_each(config) * _linear_weights(config) if half else 0,
        "activations": _tokens(config) * (model.n_layers * _layer(config, device) + _ends(config)),
        "loss": _loss(config),
    }


def _layer(config: TrialConfig, device: str) -> int:
    """Bytes a token that one layer keeps for its backward.

    In fp32: inputs of both norms, 2 D, and their scales, 2. In the precision: inputs of qkv and
    up, 2 D; queries, keys and values, 3 D; attention's output, D; before and after the SiLU, 2 F.
    Dropout's masks, 2 D: numbers on a CPU, bytes on a GPU. Not counted: attention's logarithm a
    head, which a GPU keeps too.
    """
    model, each = config.model, _bytes_each(config)
    kept = FP32 * (2 * model.d_model + 2)
    kept += each * (6 * model.d_model + 2 * model.d_ff)
    if model.dropout:
        kept += 2 * model.d_model * (each if device == "cpu" else 1)
    return kept


def _ends(config: TrialConfig) -> int:
    """Bytes a token outside the layers.

    Ids, in int64, twice. In fp32: the final norm's input, D, and its scale. In the precision:
    hidden states and their gradient, 2 D.
    """
    model = config.model
    return 16 + FP32 * (model.d_model + 1) + 2 * _bytes_each(config) * model.d_model


def _loss(config: TrialConfig) -> int:
    """The embedding's gradient in fp32; in the precision, a copy of the embedding where that is not
    the embedding itself, one block of logits, and the gradient of some of its entries.
    """
    model, each = config.model, _bytes_each(config)
    per_weight = FP32 + (each if each < FP32 else 0)
    rows, entries = min(BLOCK_ROWS, _tokens(config)), min(BLOCK_ENTRIES, model.vocab_size)
    whole = model.vocab_size * (per_weight * model.d_model + each * rows)
    return whole + each * entries * model.d_model


def _linear_weights(config: TrialConfig) -> int:
    model = config.model
    return model.n_layers * (4 * model.d_model**2 + 2 * model.d_model * model.d_ff)


def _tokens(config: TrialConfig) -> int:
    return config.data.batch_size * config.data.seq_len


def _bytes_each(config: TrialConfig) -> int:
    return FP32 if config.precision == "fp32" else 2
