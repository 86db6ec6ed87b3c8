"""Prompts: the numbers of diffusers' own pipelines for plain ones, nothing cut and A1111's weights for the rest."""

from __future__ import annotations

import pytest
import torch

from enlarger.checkpoints.prompt import Span, parse
from enlarger.checkpoints.text import MOST_CHUNKS, TextEncoders
from enlarger.errors import ModelError, SettingsError

PROMPT = "a photo of a cat on a red chair"
TWENTY = "one two three four five six seven eight nine ten red blue green cat dog bird sea sky sun moon "

transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra 'diffusers')")


@pytest.fixture(scope="module")
def parts(tiny):
    """Tokenizers and text encoders of the tiny models, by folder."""
    transformers.utils.logging.disable_progress_bar()
    loaded = {}
    for name in ("sd15", "sd21base", "x4", "sdxl"):
        found = {}
        for suffix in ("", "_2") if name == "sdxl" else ("",):
            kind = transformers.CLIPTextModelWithProjection if suffix else transformers.CLIPTextModel
            folder = tiny / name
            found["tokenizer" + suffix] = transformers.CLIPTokenizer.from_pretrained(folder / ("tokenizer" + suffix))
            found["text_encoder" + suffix] = kind.from_pretrained(
                folder / ("text_encoder" + suffix), dtype=torch.float32
            )
        loaded[name] = found
    return loaded


def padded(tokenizer, prompt):
    """Token ids as diffusers' pipelines make them."""
    return tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def same(ours, theirs, limit=1e-6):
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= limit


# How a prompt is read


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[red] [[cat]]", [("red", 1 / 1.1), (" ", 1), ("cat", 1 / 1.21)]),
        ("(a (big:2) cat:0.5)", [("a ", 0.5), ("big", 1.0), (" cat", 0.5)]),
        (r"a \(red\) \[cat\] c:\\x", [(r"a (red) [cat] c:\x", 1)]),
        ("a (red:1.0) cat", [("a red cat", 1)]),
        ("at 12:30 (noon", [("at 12:30 ", 1), ("noon", 1.1)]),
        ("smile :) :1.5) ]", [("smile :) :1.5) ]", 1)]),
        ("(ratio 16:9, wide:1.2)", [("ratio 16:9, wide", 1.2)]),
        ("(red : .5 )", [("red ", 0.5)]),
        ("[red:1.3)", [("red:1.3)", 1 / 1.1)]),
        ("a\\", [("a\\", 1)]),
    ],
)
def test_a_prompt_is_read_as_a1111_reads_it(prompt, spans):
    found = parse(prompt)
    assert [span.text for span in found] == [text for text, _ in spans]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in spans])


def test_brackets_without_effect_leave_one_span():
    assert parse("(a b (c:1.0) d:1)") == (Span("a b c d"),)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (cat:11)", "0 to 10"),
        ("a (cat:-1)", "0 to 10"),
        ("(" * 40 + "cat" + ")" * 40, "at most 10"),
        ("a cat\0", "NUL"),
        ("a cat \udcff", "UTF-8"),
        ("a cat <lora:detail:0.8>", "no word of a prompt"),
        ("a [cat:dog:0.5]", "cannot change during the steps"),
    ],
)
def test_a_prompt_that_would_mean_something_else_is_refused(prompt, words):
    with pytest.raises(SettingsError, match=words) as caught:
        parse(prompt)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


# Equal to diffusers


@pytest.mark.parametrize("name", ["sd15", "sd21base", "x4"])
@pytest.mark.parametrize("prompt", [PROMPT, "", TWENTY[:60]])
def test_one_encoder_gives_what_the_pipelines_give(parts, name, prompt):
    tokenizer, model = parts[name]["tokenizer"], parts[name]["text_encoder"]
    with torch.no_grad():
        theirs = model(padded(tokenizer, prompt))[0]
    text = TextEncoders(parts[name]).encode(prompt)
    same(text.embeddings, theirs, 0)
    assert text.pooled is None
    assert text.chunks == 1


def test_the_pad_is_the_tokenizers_own(parts):
    text = {name: TextEncoders(parts[name]).encode("cat").embeddings for name in ("sd15", "sd21base")}
    for name, ours in text.items():
        other = parts["sd21base" if name == "sd15" else "sd15"]["tokenizer"]
        with torch.no_grad():
            wrong = parts[name]["text_encoder"](padded(other, "cat"))[0]
        assert float((ours - wrong).abs().max()) > 0.1


def test_two_encoders_give_what_the_sdxl_pipeline_gives(parts):
    found = parts["sdxl"]
    with torch.no_grad():
        first, second = (
            found["text_encoder" + s](padded(found["tokenizer" + s], PROMPT), output_hidden_states=True)
            for s in ("", "_2")
        )
    text = TextEncoders(found).encode(PROMPT)
    same(text.embeddings, torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), 0)
    same(text.pooled, second.text_embeds, 0)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_diffusers_own_encoding_agrees(parts, name):
    """Its `encode_prompt` on our prompt and negative, both None and ""."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    kind = diffusers.StableDiffusionXLPipeline if name == "sdxl" else diffusers.StableDiffusionPipeline
    for negative in (None, "", "blurry"):
        asked = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True, "negative_prompt": negative}
        with torch.no_grad():
            theirs = kind.encode_prompt(_Pipeline(parts[name]), PROMPT, device="cpu", **asked)
        text, other = TextEncoders(parts[name]).encode_both(PROMPT, negative)
        ours = (text.embeddings, other.embeddings, text.pooled, other.pooled)
        for mine, its in zip(ours, theirs, strict=False):
            same(mine, its, 0)


class _Pipeline:
    """As much of a pipeline as `encode_prompt` looks at."""

    def __init__(self, parts):
        self.tokenizer, self.text_encoder = parts["tokenizer"], parts["text_encoder"]
        self.tokenizer_2, self.text_encoder_2 = parts.get("tokenizer_2"), parts.get("text_encoder_2")
        self.config = type("Config", (), {"force_zeros_for_empty_prompt": True})
        self.unet = None


def test_clip_skip_leaves_out_layers_of_one_encoder(parts):
    """The case that diffusers fails on with newer transformers (its issue 14124)."""
    model = parts["sd15"]["text_encoder"]
    with torch.no_grad():
        states = model(padded(parts["sd15"]["tokenizer"], PROMPT), output_hidden_states=True).hidden_states
        expected = model.final_layer_norm(states[-2])
    encoders = TextEncoders(parts["sd15"])
    text, negative = encoders.encode_both(PROMPT, "", clip_skip=1)
    same(text.embeddings, expected)
    same(negative.embeddings, encoders.encode("").embeddings, 0)
    assert float((text.embeddings - encoders.encode(PROMPT).embeddings).abs().max()) > 0.01


def test_the_norm_is_found_inside_older_models(parts):
    """Transformers before 5.6 keep a CLIPTextModel's layers in `text_model`."""
    model = parts["sd15"]["text_encoder"]

    class Older(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.text_model = model
            self.config = model.config

        def forward(self, *args, **kwargs):
            return self.text_model(*args, **kwargs)

    older = TextEncoders({**parts["sd15"], "text_encoder": Older()})
    same(
        older.encode(PROMPT, clip_skip=1).embeddings,
        TextEncoders(parts["sd15"]).encode(PROMPT, clip_skip=1).embeddings,
        0,
    )


def test_clip_skip_counts_from_the_last_but_one_layer_in_sdxl(tiny):
    config = transformers.CLIPTextConfig(
        vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        eos_token_id=1023, bos_token_id=1022, projection_dim=8,
    )  # fmt: skip
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny / "sdxl" / "tokenizer_2")
    model = transformers.CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        states = model(padded(tokenizer, PROMPT), output_hidden_states=True).hidden_states
    encoders = TextEncoders({"tokenizer_2": tokenizer, "text_encoder_2": model})  # a refiner has no first encoder
    assert encoders.deepest == 2
    for skip in (0, 1, 2):
        same(encoders.encode(PROMPT, clip_skip=skip).embeddings, states[-(skip + 2)], 0)
    with pytest.raises(SettingsError, match="0 to 2"):
        encoders.encode(PROMPT, clip_skip=3)


def test_a_negative_prompt_that_is_not_given_is_zeros_only_by_the_models_rule(parts):
    _, zeros = TextEncoders(parts["sdxl"]).encode_both(PROMPT, None)
    assert not zeros.embeddings.any()
    assert not zeros.pooled.any()
    _, empty = TextEncoders(parts["sdxl"]).encode_both(PROMPT, "")
    _, without = TextEncoders(parts["sdxl"], force_zeros=False).encode_both(PROMPT, None)
    assert empty.embeddings.any()
    same(without.embeddings, empty.embeddings, 0)
    same(without.pooled, empty.pooled, 0)


# Longer than 77 tokens


def test_a_long_prompt_is_read_in_chunks_of_75(parts):
    encoders = TextEncoders(parts["sd15"])
    words = (TWENTY * 10).split()
    tokens = [parts["sd15"]["tokenizer"](w, add_special_tokens=False).input_ids for w in words]
    flat = [token for word in tokens for token in word]
    text = encoders.encode(" ".join(words))
    assert text.tokens == len(flat)
    assert text.chunks == -(-len(flat) // 75) > 2
    assert text.embeddings.shape[1] == 77 * text.chunks
    for number in range(text.chunks):
        part = flat[75 * number : 75 * number + 75]
        ids = torch.tensor([[1022, *part, *[1023] * (76 - len(part))]])
        with torch.no_grad():
            same(text.embeddings[:, 77 * number : 77 * (number + 1)], parts["sd15"]["text_encoder"](ids)[0], 1e-5)


def test_exactly_75_tokens_are_one_chunk_and_76_are_two(parts):
    encoders = TextEncoders(parts["sd15"])
    assert encoders.count("a") == 1
    assert encoders.encode("a " * 75).chunks == 1
    assert encoders.encode("a " * 76).chunks == 2


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_prompt_and_negative_have_the_same_number_of_chunks(parts, name):
    encoders = TextEncoders(parts[name])
    for prompt, negative in ((TWENTY * 8, "blurry"), ("a cat", TWENTY * 8), (TWENTY * 8, None)):
        text, other = encoders.encode_both(prompt, negative)
        assert text.embeddings.shape == other.embeddings.shape
        assert text.chunks == other.chunks > 1
    empty = encoders.encode("").embeddings
    text, _ = encoders.encode_both("a cat", TWENTY * 8)
    same(text.embeddings[:, 77:154], empty, 1e-5)
    if name == "sdxl":  # the summary is the first chunk's
        same(text.pooled, encoders.encode("a cat").pooled, 1e-5)


def test_five_thousand_words_work_and_a_book_is_refused(parts):
    encoders = TextEncoders(parts["sd15"])
    text = encoders.encode("cat " * 5000)
    assert text.tokens == encoders.count("cat " * 5000) >= 5000
    assert torch.isfinite(text.embeddings).all()
    with pytest.raises(SettingsError, match="at most"):
        encoders.encode("cat " * (75 * MOST_CHUNKS + 1))


@pytest.mark.parametrize(
    "prompt", ["", "   \n\t", "\x01\x1b[0m\x7f", "日本語の猫", "🐈" * 30, "<|endoftext|>", "a\r\nb"]
)
def test_odd_text_is_read(parts, prompt):
    for name in ("sd15", "sdxl"):
        text = TextEncoders(parts[name]).encode(prompt.replace("[", r"\["))
        assert torch.isfinite(text.embeddings).all()


# Weights


def test_weights_are_a1111s_rule(parts):
    """Outputs times weights, then the chunk's mean as it was."""
    encoders = TextEncoders(parts["sd15"])
    plain = encoders.encode("a red cat").embeddings
    head = encoders.count("a")
    red = encoders.count("red")
    weighted = encoders.encode("a (red:1.5) cat").embeddings
    expected = plain.clone()
    expected[:, 1 + head : 1 + head + red] *= 1.5
    expected *= plain.mean() / expected.mean()
    same(weighted, expected, 1e-5)
    assert float(weighted.mean()) == pytest.approx(float(plain.mean()), rel=1e-3)
    assert float((weighted - plain).abs().max()) > 0.01


def test_a_weight_acts_on_its_own_chunk_only_and_never_on_the_summary(parts):
    encoders = TextEncoders(parts["sdxl"])
    plain, weighted = encoders.encode(TWENTY * 8), encoders.encode(f"(one:1.5){(TWENTY * 8).removeprefix('one')}")
    assert plain.tokens == weighted.tokens
    assert float((plain.embeddings - weighted.embeddings)[:, :77].abs().max()) > 0.01
    same(weighted.embeddings[:, 77:], plain.embeddings[:, 77:], 1e-6)
    same(weighted.pooled, plain.pooled, 0)


def test_a_mean_that_no_positive_factor_brings_back_turns_nothing_round(parts):
    """An encoder whose marks say 1.5 and whose words say -1: with weight 2 the mean changes its sign."""

    class Fixed(torch.nn.Module):
        config = parts["sd15"]["text_encoder"].config
        final_layer_norm = torch.nn.Identity()

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, ids, **_):
            return (torch.where(ids == 1022, 1.5, torch.where(ids == 1023, 0.0, -1.0))[..., None],)

    encoders = TextEncoders({**parts["sd15"], "text_encoder": Fixed()})
    text = encoders.encode("(a:2)").embeddings
    assert text[0, :3, 0].tolist() == [1.5, -2, 0]
    within = encoders.encode("(a:1.2)").embeddings  # here a positive factor does
    assert float(within.mean()) == pytest.approx(0.5 / 77, rel=1e-4)


def test_half_precision_encoders_give_half_precision(parts):
    import copy

    half = {**parts["sd15"], "text_encoder": copy.deepcopy(parts["sd15"]["text_encoder"]).to(torch.bfloat16)}
    text = TextEncoders(half).encode("a (red:1.5) cat")
    assert text.embeddings.dtype == torch.bfloat16
    full = TextEncoders(parts["sd15"]).encode("a (red:1.5) cat").embeddings
    assert float((text.embeddings.float() - full).abs().mean()) < 0.05


# Parts that are missing or do not fit


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder"])
def test_a_missing_part_is_named(parts, missing):
    with pytest.raises(ModelError, match=f"no {missing}"):
        TextEncoders({name: part for name, part in parts["sd15"].items() if name != missing})
    with pytest.raises(ModelError, match=f"no {missing}_2"):
        TextEncoders({name: part for name, part in parts["sdxl"].items() if name != missing + "_2"})


def test_a_tokenizer_of_another_model_is_refused(parts):
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="different models"):
        TextEncoders({"tokenizer": parts["sd15"]["tokenizer"], "text_encoder": transformers.CLIPTextModel(config)})
