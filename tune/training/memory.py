"""Peak memory of a trial, predicted from its configuration alone.

Letters: T time, D d_model, F d_ff, H heads, V vocabulary.

`device` is "cpu" or "cuda". `capability` is a GPU's compute capability, on which its libraries and
kernels depend.
"""

from quarterhour.model.feed_forward import FEED_FORWARDS
from quarterhour.model.loss import BLOCK_ENTRIES, BLOCK_ROWS, block_rows
from quarterhour.search_spaces.point import TrialConfig

FP32 = 4
ACCURACY = 1.15  # measured memory is within this of the predicted, see tests/benchmarks/memory.py
# Resident memory of a trial's process under Ray before its first step.
PROCESS_BYTES = 520_000_000
# Measured on 44 points that the benchmark does not use: what the libraries take for themselves, and
# the share of each term that stays resident beside it, as fragments that nothing else fits into.
LIBRARIES_BYTES = 16_200_000
SCATTERED = {"activations": 0.49, "gradients": 0.27}
# For each training token: on a GPU the token in int32, on a CPU the place of its window in uint32.
# There the tokens are the pages of a file, which all trials share.
TOKEN_BYTES = 4
# Reserved for allocated memory on a GPU, and what the first step's stream keeps in holes between
# the optimizer's moments: measured on an H200 with expandable segments.
RESERVED, HOLES_BYTES = 1.03, 160_000_000
# Workspaces of cuBLAS, for each stream and thread: evaluations, forward and backward pass of the
# first step and of the recorded one. The last is not there yet when memory is at its peak.
WORKSPACES = 5
Capability = tuple[int, int]


def peak_bytes(config: TrialConfig, device: str, capability: Capability = (0, 0)) -> int:
    """Largest `peak_memory_bytes` of a trial: allocated on "cuda", resident on "cpu".

    Training tokens are not in it.
    """
    terms = live_bytes(config, device, capability)
    live = sum(terms.values())
    if device == "cuda":
        return live + (WORKSPACES - 1) * _cublas_workspace(capability)
    scattered = round(sum(share * terms.get(name, 0) for name, share in SCATTERED.items()))
    if config.model.positions != "none" and "activations" in terms:
        scattered += _tokens(config) * config.model.n_layers * _turned(config)
    return PROCESS_BYTES + LIBRARIES_BYTES + live + scattered


def reserved_bytes(config: TrialConfig, capability: Capability) -> float:
    """What torch's allocator holds of a GPU for a trial, beside its training tokens.

    A recorded step keeps its memory, so an evaluation's comes on top of it.
    """
    evaluation = sum(_in_evaluation(config).values()) + _cublas_workspace(capability)
    return RESERVED * (peak_bytes(config, "cuda", capability) + evaluation) + HOLES_BYTES


def live_bytes(config: TrialConfig, device: str, capability: Capability = (0, 0)) -> dict[str, int]:
    """What a trial's tensors hold at its peak, by what they are for.

    The peak is at the loss, or, with few tokens, at the end of the backward pass: there the tied
    embedding has one gradient from the head, one from the lookup, and their sum. With few tokens on
    a GPU it is in an evaluation, which keeps no layer's tensors and has no gradients, but a block
    of logits and one of probabilities in fp32.
    """
    model = config.model
    sights = map(model.sight_of, range(model.n_layers))
    layers = sum(_layer(config, sight.needs_blocks(device), device, capability) for sight in sights)
    at_loss = {
        "weight copies": _weight_copies(config),
        "activations": _tokens(config) * (layers + _ends(config, device)),
        "loss": _loss(config, device, capability),
    }
    tied = model.vocab_size * model.d_model - model.lookup
    at_end = {"gradients": FP32 * (model.parameters + 2 * tied)}
    in_evaluation = _in_evaluation(config) if device == "cuda" else {}
    return {
        "weights": FP32 * model.parameters,
        "optimizer": _optimizer(config),
    } | max(at_loss, at_end, in_evaluation, key=lambda terms: sum(terms.values()))


def _optimizer(config: TrialConfig) -> int:
    """AdamW's two moments, or Muon's one of the layers' matrices; averaged weights."""
    model = config.model
    matrices = model.n_layers * model.layer_matrices if config.optim.optimizer == "muon" else 0
    averages = model.parameters if config.optim.ema_decay else 0
    return FP32 * (2 * model.parameters - matrices + averages)


def keeps_scores(config: TrialConfig, capability: Capability) -> bool:
    """Whether a GPU has no kernel for this attention: torch then keeps each head's T x T scores.

    Flash attention is for half precision from compute capability 8 on, and pads the heads. Memory-
    efficient attention takes heads of multiples of 8, or of 4 in fp32, and bf16 from 8 on. Our own
    keeps none.
    """
    model = config.model
    if all(model.sight_of(layer).needs_blocks("cuda") for layer in range(model.n_layers)):
        return False
    recent, width = capability >= (8, 0), config.model.d_head
    if config.precision == "fp32":
        return recent and width % 4 != 0
    return not recent and (config.precision == "bf16" or width % 8 != 0)


def _cublas_workspace(capability: Capability) -> int:
    """What cuBLAS takes for itself in each thread, as torch sets it."""
    return 33_554_432 if capability >= (9, 0) else 8_519_680


def _layer(config: TrialConfig, in_blocks: bool, device: str, capability: Capability) -> int:
    """Bytes a token that one layer keeps for its backward.

    In fp32: inputs of both norms, 2 D, and their scales, 2. In the precision: inputs of qkv and
    up, 2 D; queries, keys and values, up to 3 D; attention's output, D; of the feed-forward what it
    says. Dropout's masks, 2 D: numbers on a CPU, bytes on a GPU. Attention that is not in blocks
    has shared keys and values once for each head, and besides a logarithm a head; with RoPE its
    output in a second order, D; without a kernel the scores, T a head, and queries and keys, 2 D,
    in fp32.
    """
    model, each = config.model, _bytes_each(config)
    kept = FP32 * 2 * model.d_model + _more_of_norms(config, device)
    d_qkv = model.d_qkv if in_blocks else 3 * model.d_model
    of_feed_forward = model.d_model + FEED_FORWARDS[model.feed_forward].kept * model.d_ff
    kept += each * (2 * model.d_model + d_qkv + of_feed_forward)
    if model.feed_forward == "moe":
        kept += _more_of_experts(config, device)
    if not in_blocks:
        kept += FP32 * model.n_heads
        if model.positions != "none":
            kept += each * model.d_model
        if keeps_scores(config, capability):
            kept += FP32 * (model.n_heads * config.data.seq_len + 2 * model.d_model)
    if model.dropout:
        kept += 2 * model.d_model * (each if device == "cpu" else 1)
    return kept


def _more_of_norms(config: TrialConfig, device: str) -> int:
    """Bytes a token of a layer's norms besides the residual stream, which is their input.

    In fp32: scales, and of layer norms means too. Inputs of those after the branches, 2 D, in the
    precision. Of those of queries and keys a scale a head, and the input with the values beside it.
    Layer norms, and on a GPU all, keep inputs in fp32.
    """
    model, each = config.model, _bytes_each(config)
    of_vector = 2 if model.norm == "layer" else 1
    kept = FP32 * of_vector * model.branch_norms
    of_branches = FP32 if model.norm == "layer" or device == "cuda" else each
    kept += of_branches * (model.branch_norms - 2) * model.d_model
    if model.qk_norm == "rms":
        d_qk = (model.n_heads + model.kv_heads) * model.d_head
        wide = device == "cuda" and each < FP32
        kept += FP32 * d_qk if wide else each * model.d_qkv
        kept += FP32 * (model.n_heads + model.kv_heads)
    return kept


def _more_of_experts(config: TrialConfig, device: str) -> int:
    """Bytes a token that a layer of experts keeps beside one feed-forward's.

    On a CPU each active expert has its own input and output, D each; and what a feed-forward keeps,
    as on a GPU all experts have, with the weighted hidden numbers. The router: its input in fp32,
    probabilities, twice an expert, and their indices and weights.
    """
    model, each = config.model, _bytes_each(config)
    hidden = FEED_FORWARDS[model.feed_forward].kept * model.d_ff
    router = (FP32 * model.d_model if each < FP32 else 0) + 2 * FP32 * model.n_experts
    if device == "cuda":
        return router + each * ((model.n_experts - 1) * hidden + model.n_experts * model.d_ff)
    own_input = 0 if each == FP32 else -each * model.d_model
    places = model.active_experts * (each * (2 * model.d_model + hidden) + 3 * 8)
    return router + places - each * hidden + own_input


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


def _loss(config: TrialConfig, device: str, capability: Capability) -> int:
    """The embedding's gradient in fp32; in the precision, a copy of the embedding where that is not
    the embedding itself, one block of logits, and on a CPU the gradient of some of its entries.

    After it, where scores are kept, the backward pass of the last layer has two more of them.
    """
    model, each = config.model, _bytes_each(config)
    block = each * model.vocab_size * min(block_rows(device), _tokens(config))
    gradient = FP32 * model.vocab_size * model.d_model
    if device == "cpu":
        block += each * min(BLOCK_ENTRIES, model.vocab_size) * model.d_model
    elif keeps_scores(config, capability):
        scores = FP32 * _tokens(config) * model.n_heads * config.data.seq_len
        return gradient + max(_embedding_copy(config) + block, 2 * scores)
    return gradient + _embedding_copy(config) + block


def _in_evaluation(config: TrialConfig) -> dict[str, int]:
    """Copies of all weights in half precision; a block of logits, that in fp32 where it is not, and
    its probabilities; the averaged weights that are evaluated.
    """
    blocks_in_fp32 = 1 if config.precision == "fp32" else 2
    each = _bytes_each(config) + blocks_in_fp32 * FP32
    block = each * config.model.vocab_size * min(BLOCK_ROWS, _tokens(config))
    return {
        "weight copies": _weight_copies(config) + _embedding_copy(config),
        "metrics": block,
        "averages": FP32 * config.model.parameters if config.optim.ema_decay else 0,
    }


def _embedding_copy(config: TrialConfig) -> int:
    """The embedding in half precision; in fp32 there is no copy."""
    model, each = config.model, _bytes_each(config)
    return each * model.vocab_size * model.d_model if each < FP32 else 0


def _weight_copies(config: TrialConfig) -> int:
    """The layers' matrices in half precision; in fp32 there are no copies."""
    model, each = config.model, _bytes_each(config)
    return each * model.n_layers * model.layer_matrices if each < FP32 else 0


def _tokens(config: TrialConfig) -> int:
    return config.data.batch_size * config.data.seq_len


def _bytes_each(config: TrialConfig) -> int:
    return FP32 if config.precision == "fp32" else 2
