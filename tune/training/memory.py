"""Peak memory of a trial, predicted from its configuration alone.

Evaluation keeps no layer's tensors and has no gradients, so it needs less than a training step.

Letters: N tokens of a batch, D d_model, F d_ff, H heads, L layers, V vocabulary, P parameters;
c bytes of a number in the trial's precision.
"""

from quarterhour.model.loss import BLOCK_ENTRIES, BLOCK_ROWS
from quarterhour.search_spaces.point import TrialConfig

FP32 = 4
ACCURACY = 1.15  # measured memory is within this of the predicted, see tests/benchmarks/memory.py
# Resident memory of a trial's process under Ray before its first step.
PROCESS_BYTES = 520_000_000
# Measured on 44 points that the benchmark does not use: what the libraries take for themselves, and
# the shares of these terms that stay resident besides, as freed blocks that fit nothing else.
LIBRARIES_BYTES = 16_200_000
SCATTERED = {"activations": 0.49, "gradients": 0.27}
# What cuBLAS takes on a GPU: torch's default before compute capability 9.
CUBLAS_WORKSPACE_BYTES = 8_519_680


def peak_bytes(config: TrialConfig, device: str) -> int:
    """Largest `peak_memory_bytes` of a trial: allocated on "cuda", resident on "cpu"."""
    terms = live_bytes(config, device)
    live = sum(terms.values())
    if device == "cuda":
        return live + CUBLAS_WORKSPACE_BYTES
    scattered = round(sum(share * terms.get(name, 0) for name, share in SCATTERED.items()))
    if config.model.positions == "rope" and "activations" in terms:
        scattered += _tokens(config) * config.model.n_layers * _turned(config)
    return PROCESS_BYTES + LIBRARIES_BYTES + live + scattered


def live_bytes(config: TrialConfig, device: str) -> dict[str, int]:
    """What a step of a trial holds at its peak, by what it is for; device is "cpu" or "cuda".

    The peak is at the loss, or, with few tokens, at the end of the backward pass: there the tied
    embedding has one gradient from the head, one from the lookup, and their sum.
    """
    model, half = config.model, config.precision != "fp32"
    layers = model.n_layers * _layer(config, device) + _ends(config, device)
    at_loss = {
        "weight copies": _bytes_each(config) * _linear_weights(config) if half else 0,
        "activations": _tokens(config) * layers,
        "loss": _loss(config),
    }
    at_end = {"gradients": FP32 * (model.parameters + 2 * model.vocab_size * model.d_model)}
    return {
        "weights": FP32 * model.parameters,
        "optimizer": 2 * FP32 * model.parameters,  # AdamW's moments
    } | max(at_loss, at_end, key=lambda terms: sum(terms.values()))


def _layer(config: TrialConfig, device: str) -> int:
    """Bytes a token that one layer keeps for its backward.

    In fp32: inputs of both norms, 2 D, and their scales, 2. In the precision: inputs of qkv and
    up, 2 D; queries, keys and values, 3 D; attention's output, D; before and after the SiLU, 2 F.
    A logarithm a head, where the attention is a GPU's. Dropout's masks, 2 D: numbers on a CPU,
    bytes on a GPU.
    """
    model, each = config.model, _bytes_each(config)
    kept = FP32 * (2 * model.d_model + 2)
    kept += each * (6 * model.d_model + 2 * model.d_ff)
    if device == "cuda":
        kept += FP32 * model.n_heads
    if model.dropout:
        kept += 2 * model.d_model * (each if device == "cpu" else 1)
    return kept


def _turned(config: TrialConfig) -> int:
    """Bytes a token that RoPE makes and frees in a layer: 3 D before it turns them, 2 D turned."""
    return 5 * _bytes_each(config) * config.model.d_model


def _ends(config: TrialConfig, device: str) -> int:
    """Bytes a token outside the layers.

    Ids, in int64, twice. In fp32: the final norm's input, D, and its scale. In the precision:
    hidden states and their gradient, 2 D. The mask of the embedding's dropout, D.
    """
    model = config.model
    kept = 16 + FP32 * (model.d_model + 1) + 2 * _bytes_each(config) * model.d_model
    if model.dropout:
        kept += model.d_model * (FP32 if device == "cpu" else 1)
    return kept


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
