import pytest
import torch
from architectures import configs, loud
from hypothesis import given

from quarterhour.model.attention import Past
from quarterhour.model.decoder import Decoder, DecoderConfig
from quarterhour.model.sampling import PROMPTS, continue_tokens, stream_tokens

VOCAB = 30


@pytest.fixture
def model() -> Decoder:
    config = DecoderConfig(
        vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=1, d_ff=16, positions="rope"
    )
    decoder = Decoder(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in decoder.parameters():  # so that the context shows in the distribution
        parameter.data.normal_(std=0.5, generator=generator)
    return decoder


def sample(model: Decoder, prompt: list[int], *, seq_len: int = 8, seed: int = 0) -> list[int]:
    return continue_tokens(model, [prompt], new_tokens=40, seq_len=seq_len, seed=seed)[0]


def test_equal_seeds_give_equal_text_and_others_do_not(model: Decoder):
    torch.manual_seed(1)
    first = sample(model, [1, 2])
    torch.manual_seed(2)
    assert sample(model, [1, 2]) == first
    assert sample(model, [1, 2], seed=1) != first


def test_as_many_token_ids_come_as_asked_for_and_the_prompt_stays_as_it_is(model: Decoder):
    prompt = [1, 2, 3]
    assert continue_tokens(model, [prompt], new_tokens=0, seq_len=8, seed=0) == [[]]
    drawn = sample(model, prompt)
    assert len(drawn) == 40
    assert prompt == [1, 2, 3]
    assert set(drawn) <= set(range(VOCAB))


def test_the_model_sees_the_window_it_was_trained_on_and_no_more(model: Decoder):
    windows: list[list[int]] = []
    model.register_forward_pre_hook(lambda _, inputs: windows.extend(inputs[0].tolist()))
    prompt = [1, 2, 3, 4, 5]
    text = prompt + continue_tokens(model, [prompt], new_tokens=6, seq_len=8, seed=0)[0]
    kept_until_the_window_is_full = [text[:5], *([token] for token in text[5:8])]
    assert windows == [*kept_until_the_window_is_full, text[1:9], text[2:10]]


def test_prompts_of_different_lengths_are_continued_as_each_would_be_alone(model: Decoder):
    model = model.double()
    prompts = [[1], [2, 3, 4], [5, 6]]
    together = continue_tokens(model, prompts, new_tokens=12, seq_len=8, seed=3)
    alone = [
        continue_tokens(model, [prompt], new_tokens=12, seq_len=8, seed=3 + place)[0]
        for place, prompt in enumerate(prompts)
    ]
    assert together == alone


def test_a_prompt_without_a_token_is_not_continued(model: Decoder):
    both = continue_tokens(model, [[], [1, 2], []], new_tokens=5, seq_len=8, seed=0)
    assert [len(drawn) for drawn in both] == [0, 5, 0]
    alone = continue_tokens(model, [[1, 2]], new_tokens=5, seq_len=8, seed=1)
    assert both[1] == alone[0]
    assert continue_tokens(model, [[]], new_tokens=5, seq_len=8, seed=0) == [[]]


def test_a_sure_model_says_what_it_is_sure_of(model: Decoder):
    model.final_norm.weight.data.mul_(1e4)
    text = [3, 1, 4]
    for _ in range(40):
        window = torch.tensor([text[-8:]])
        text.append(int(model.logits(model(window))[0, -1].argmax()))
    assert sample(model, [3, 1, 4]) == text[3:]
    assert sample(model, [3, 1, 4], seed=1) == text[3:]


def test_each_token_is_the_one_that_multinomial_draws(model: Decoder):
    text, generator = [3, 1, 4], torch.Generator().manual_seed(5)
    for _ in range(20):
        logits_V = model.logits(model(torch.tensor([text[-8:]])))[0, -1]
        text.append(int(torch.multinomial(logits_V.softmax(0), 1, generator=generator)))
    assert sample(model, [3, 1, 4], seed=5)[:20] == text[3:]


def test_tokens_are_drawn_in_the_models_proportions(model: Decoder):
    model.embedding.weight.data.zero_()
    (drawn,) = continue_tokens(model, [[0]], new_tokens=1_500, seq_len=1, seed=0)
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCAB)
    assert counts.min() > 20
    assert counts.max() < 90


def test_there_are_five_different_prompts_and_none_is_blank():
    assert len(set(PROMPTS)) == 5
    assert all(prompt == prompt.strip() != "" for prompt in PROMPTS)


@given(config=configs())
@torch.no_grad()
def test_logits_after_a_past_are_those_of_the_whole_text(config: DecoderConfig):
    model = loud(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(config.vocab_size, (2, 20), generator=generator)
    past = [Past() for _ in model.layers]
    parts = [model(tokens_BT[:, :7], past), *(model(tokens_BT[:, [t]], past) for t in range(7, 20))]
    torch.testing.assert_close(
        model.logits(torch.cat(parts, 1)), model.logits(model(tokens_BT)), rtol=1e-9, atol=1e-9
    )


def test_a_stream_has_the_tokens_of_a_sample_and_its_temperature_sharpens(model: Decoder):
    streamed = [
        [*stream_tokens(model, [1, 2], new_tokens=40, seq_len=8, seed=0, temperature=temperature)]
        for temperature in (1.0, 1e-4, 0.0)
    ]
    assert streamed[0] == sample(model, [1, 2])
    text = [1, 2]
    for _ in range(40):
        text.append(int(model.logits(model(torch.tensor([text[-8:]])))[0, -1].argmax()))
    assert streamed[1] == streamed[2] == text[2:] != streamed[0]
