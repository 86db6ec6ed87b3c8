"""Embeddings: a word's vectors stand where its tokens would, in every kind of file and every prompt."""

from __future__ import annotations

import threading

import pytest
import torch

from enlarger.checkpoints.embedding import Embedding, read_embedding
from enlarger.checkpoints.text import TextEncoders
from enlarger.errors import ModelError, SettingsError
from tests.checkpoints.test_lora import stored

from tests.engines import tiny  # isort: skip  (skips without diffusers)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return tiny.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return tiny.sdxl(tmp_path_factory.mktemp("sdxl"))


def rows(parts, text, part="text_encoder"):
    """The vectors that the tokens of a text have."""
    tokenizer = parts[part.replace("text_encoder", "tokenizer")]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return parts[part].get_input_embeddings().weight[ids].detach().clone()


def close(one, other):
    return torch.allclose(one.embeddings, other.embeddings, atol=1e-5)


def test_a_word_with_the_vectors_of_other_words_reads_as_they_do(sd):
    word = Embedding("file", "tinyemb", {"text_encoder": rows(sd, "red")})
    plain, taught = TextEncoders(sd), TextEncoders(sd, embeddings=[word])
    for prompt in ("a {} cat", "{}", "({}:1.3) and {}, ({})", "a {}" + " cat" * 60):
        one, other = taught.encode(prompt.replace("{}", "tinyemb")), plain.encode(prompt.replace("{}", "red"))
        assert close(one, other)
        assert (one.tokens, one.chunks) == (other.tokens, other.chunks)
    assert close(taught.encode("a TinyEmb cat"), plain.encode("a red cat"))
    for inside in ("a tinyembs cat", "a xtinyemb cat"):  # within another word it is none
        assert close(taught.encode(inside), plain.encode(inside))
    assert close(taught.encode("no such word"), plain.encode("no such word"))
    text, negative = taught.encode_both("a cat", "tinyemb")
    assert close(negative, plain.encode("red"))
    assert close(text, plain.encode("a cat"))
    assert not close(plain.encode("a tinyemb cat"), plain.encode("a red cat"))


def test_it_counts_as_many_tokens_as_it_has_vectors_and_two_words_do_not_mix(sd):
    words = [
        Embedding("one", "<one>", {"text_encoder": rows(sd, "red sea")}),
        Embedding("two", "<one>-two", {"text_encoder": rows(sd, "sun")}),
    ]
    plain, taught = TextEncoders(sd), TextEncoders(sd, embeddings=words)
    assert taught.count("<one>") == len(rows(sd, "red sea"))
    assert close(taught.encode("a <one>-two on <one>"), plain.encode("a sun on red sea"))


def test_sdxl_has_vectors_for_both_encoders_and_the_summary_is_still_the_end_s(sdxl):
    parts = {**sdxl, "text_encoder_2": sdxl["text_encoder_2"]}
    vectors = {part: rows(sdxl, "red", part) for part in ("text_encoder", "text_encoder_2")}
    plain, taught = TextEncoders(parts), TextEncoders(parts, embeddings=[Embedding("file", "it", vectors)])
    one, other = taught.encode("a it cat"), plain.encode("a red cat")
    assert close(one, other)
    assert torch.allclose(one.pooled, other.pooled, atol=1e-5)
    lonely = Embedding("small", "it", {"text_encoder": vectors["text_encoder"]})
    with pytest.raises(ModelError, match="embedding small has nothing for the model's text_encoder_2"):
        TextEncoders(parts, embeddings=[lonely])


def test_another_thread_s_prompt_is_not_touched(sd):
    taught = TextEncoders(sd, embeddings=[Embedding("file", "it", {"text_encoder": rows(sd, "red")})])
    expected = taught.encode("a cat").embeddings
    inside, done, found = threading.Event(), threading.Event(), []

    def other():
        inside.wait(5)
        found.append(taught.encode("a cat").embeddings)
        done.set()

    def pause(*_):
        if threading.current_thread() is threading.main_thread():
            inside.set()
            done.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    handle = sd["text_encoder"].get_input_embeddings().register_forward_pre_hook(pause)
    try:
        taught.encode("it")
    finally:
        handle.remove()
        thread.join()
    assert torch.equal(found[0], expected)


def test_every_kind_of_file_is_read():
    vectors = torch.randn(2, 8)
    for tensors, word in (
        ({"emb_params": vectors}, "file"),
        ({"string_to_param.*": vectors}, "file"),
        ({"<tiny-style>": vectors}, "<tiny-style>"),
    ):
        read = read_embedding(stored(tensors), "file")
        assert read.word == word
        assert torch.equal(read.of("text_encoder", 8), vectors)
        assert read_embedding(stored(tensors), "file", "mine").word == "mine"
    assert read_embedding(stored({"<one>": vectors[0]}), "file").of("text_encoder", 8).shape == (1, 8)
    both = read_embedding(stored({"clip_l": vectors, "clip_g": torch.randn(2, 12)}), "file")
    assert both.of("text_encoder_2", 12).shape == (2, 12)


def test_what_is_none_is_refused_with_what_to_do():
    vectors = torch.randn(2, 8)
    with pytest.raises(ModelError, match="file is no embedding"):
        read_embedding(stored({"one": vectors, "two": vectors}), "file")
    with pytest.raises(ModelError, match="file is no embedding"):
        read_embedding(stored({"emb_params": torch.randn(76, 8)}), "file")
    with pytest.raises(ModelError, match="another number of vectors for each encoder"):
        read_embedding(stored({"clip_l": vectors, "clip_g": torch.randn(3, 12)}), "file")
    with pytest.raises(ModelError, match="not finite"):
        read_embedding(stored({"emb_params": vectors * float("nan")}), "file")
    with pytest.raises(ModelError, match=r"vectors have 8 numbers, and this model's text_encoder has 768"):
        read_embedding(stored({"emb_params": vectors}), "file").of("text_encoder", 768)
    for word in ("two words", "(it)", "it:1"):
        with pytest.raises(SettingsError, match="name another with --embedding FILE:WORD"):
            read_embedding(stored({"emb_params": vectors}), "file", word)
    with pytest.raises(SettingsError, match="name another"):
        read_embedding(stored({"emb_params": vectors}), "my style")
