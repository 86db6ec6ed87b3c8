"""LoRAs and embeddings of an engine: what they change, what the record says, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

import enlarger
from enlarger.cli.main import main
from enlarger.errors import ModelError, SettingsError
from tests.engines import tiny as small
from tests.engines.test_latent_contract import furthest, picture

CALL = {"scale": 1, "steps": 2, "seed": 3, "prompt": "a cat", "consistency": 0.0, "strength": 1.0}
TO_V = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"
TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FC1 = "encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return small.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def files(tmp_path_factory, parts):
    """A LoRA for the UNet and one for the text, an embedding, and a LoRA and an embedding of wide models."""
    folder = tmp_path_factory.mktemp("adapters")

    def lora(name, stem, layer, seed, width=None):
        generator = torch.Generator().manual_seed(seed)
        out, inner = layer.weight.shape
        factors = {
            f"{stem}.lora_A.weight": torch.randn(2, width or inner, generator=generator),
            f"{stem}.lora_B.weight": torch.randn(out, 2, generator=generator),
        }
        save_file(factors, folder / f"{name}.safetensors")

    unet, text = parts["unet"], parts["text_encoder"]
    fc1 = next(layer for name, layer in text.named_modules() if name.endswith(FC1))
    lora("one", f"unet.{TO_V}", unet.get_submodule(TO_V), 1)
    lora("two", f"text_encoder.text_model.{FC1}", fc1, 2)
    lora("xl", f"unet.{TO_K}", unet.get_submodule(TO_K), 3, width=2048)
    vectors = torch.randn(2, small.CONTEXT, generator=torch.Generator().manual_seed(4))
    save_file({"emb_params": vectors}, folder / "tinyemb.safetensors")
    save_file({"emb_params": torch.randn(2, 768)}, folder / "wide.safetensors")
    return folder


def made(parts, engine="img2img", prompt="a cat", **machine):
    return enlarger.Upscaler(engine, components=parts, **machine)(picture(16, 16), **{**CALL, "prompt": prompt})


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_lora_changes_the_picture_by_its_scale_and_is_named_in_the_record(parts, files, name):
    plain = made(parts)
    full, weaker, none = (made(parts, lora=[f"{files / name}.safetensors{scale}"]) for scale in ("", ":0.1", ":0"))
    assert furthest(full, plain) > 1e-3
    assert furthest(full, weaker) > 1e-3
    assert furthest(none, plain) == 0
    assert f"{name}:0.1" in weaker.model
    assert len({full.digest, weaker.digest, none.digest}) == 3


def test_a_folder_of_diffusers_is_its_one_file(parts, files, tmp_path):
    for name, inside in (("one", "pytorch_lora_weights.safetensors"), ("tinyemb", "learned_embeds.bin")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_bytes((files / f"{name}.safetensors").read_bytes())
    whole = made(parts, prompt="a tinyemb", lora=[f"{tmp_path / 'one'}:0.5"], embedding=[str(tmp_path / "tinyemb")])
    loose = {"lora": [f"{files / 'one'}.safetensors:0.5"], "embedding": [f"{files / 'tinyemb'}.safetensors"]}
    assert furthest(whole, made(parts, prompt="a tinyemb", **loose)) == 0
    assert "one:0.5 + tinyemb as tinyemb" in whole.model


def test_several_add_up_in_any_order(parts, files):
    one, two = (f"{files / name}.safetensors:0.5" for name in ("one", "two"))
    both, turned = made(parts, lora=[one, two]), made(parts, lora=[two, one])
    assert furthest(both, turned) < 1e-5
    assert furthest(both, made(parts, lora=[one])) > 1e-3


def test_a_pipeline_in_memory_keeps_its_own_weights_and_shares_the_others(parts, files):
    before = {name: copy.deepcopy(parts[name].state_dict()) for name in ("unet", "text_encoder")}
    loras = [f"{files / name}.safetensors" for name in ("one", "two")]
    up = enlarger.Upscaler("img2img", components=parts, lora=loras)
    for name, weights in before.items():
        assert all(torch.equal(value, weights[key]) for key, value in parts[name].state_dict().items())
    ours, theirs = up.engine.parts.unet, parts["unet"]
    assert ours.conv_in.weight is theirs.conv_in.weight
    assert ours.get_submodule(TO_V).weight is not theirs.get_submodule(TO_V).weight


def test_an_embedding_s_word_changes_the_picture_and_only_where_it_is_said(parts, files):
    taught = {"embedding": [f"{files / 'tinyemb'}.safetensors"]}
    assert furthest(made(parts, prompt="a tinyemb cat", **taught), made(parts, prompt="a tinyemb cat")) > 1e-3
    assert furthest(made(parts, **taught), made(parts)) == 0
    renamed = made(parts, prompt="a style cat", embedding=[f"{files / 'tinyemb'}.safetensors:style"])
    assert furthest(renamed, made(parts, prompt="a tinyemb cat", **taught)) == 0
    assert "tinyemb as style" in renamed.model


def test_what_was_made_for_another_model_is_refused_with_both_names(parts, files):
    wide = {**parts, "unet": small.unet(cross_attention_dim=768)}
    with pytest.raises(ModelError, match=r"xl is a LoRA for Stable Diffusion XL, and the model is .* 1\.x"):
        made(wide, lora=[f"{files / 'xl'}.safetensors"])
    with pytest.raises(ModelError, match="xl was made for another model"):
        made(parts, lora=[f"{files / 'xl'}.safetensors"])
    with pytest.raises(ModelError, match="wide was made for another model: its vectors have 768 numbers"):
        made(parts, embedding=[f"{files / 'wide'}.safetensors"])
    with pytest.raises(ModelError, match="tinyemb is an embedding; engine img2img needs a LoRA"):
        made(parts, lora=[f"{files / 'tinyemb'}.safetensors"])
    with pytest.raises(ModelError, match="both want the word"):
        made(parts, embedding=[f"{files / 'tinyemb'}.safetensors"] * 2)
    with pytest.raises(SettingsError, match="is not -10 to 10"):
        made(parts, lora=[f"{files / 'one'}.safetensors:11"])
    with pytest.raises(SettingsError, match="is not -10 to 10"):
        made(parts, lora=[f"{files / 'one'}.safetensors:nan"])
    with pytest.raises(SettingsError, match=r"'half' in .* is no scale"):
        made(parts, lora=[f"{files / 'one'}.safetensors:half"])


@pytest.mark.parametrize("name", ["pocket", "gan", "interpolate", "stablesr"])
@pytest.mark.parametrize("option", ["lora", "embedding"])
def test_engines_that_use_neither_refuse_both(name, option):
    with pytest.raises(SettingsError, match=f"engine {name} does not use {option}|no setting {option}"):
        enlarger.Upscaler(name, "file", **{option: ["x.safetensors"]})


def test_the_command_takes_them_for_files(tiny, tmp_path, capsys):
    toy = tmp_path / "in.png"
    enlarger.upscale(picture(16, 16), engine="interpolate", scale=2).save(toy)
    adapters = tiny / "adapters"
    words = ["upscale", toy, "-e", "img2img", "-m", tiny / "sd15", "--steps", 2, "-p", "a tinyemb cat", "-s", 1]
    more = ["--lora", f"{adapters / 'lora_kohya_sd15.safetensors'}:0.8"]
    more += ["--embedding", f"{adapters / 'textual_inversion_a1111_sd15.safetensors'}:tinyemb"]
    outputs = {}
    for name, extra in (("plain", []), ("both", more)):
        outputs[name] = tmp_path / f"{name}.png"
        assert main([str(word) for word in (*words, "-o", outputs[name], *extra)]) == 0, capsys.readouterr().err
    assert outputs["plain"].read_bytes() != outputs["both"].read_bytes()
    assert main([str(word) for word in (*words, "-o", tmp_path / "no.png", "--lora", "nowhere.safetensors")]) == 4
    assert "nowhere.safetensors" in capsys.readouterr().err
    assert main([str(word) for word in (*words, "-o", tmp_path / "no.png", "--lora", f"{adapters}/x:99")]) == 2
    assert not (tmp_path / "no.png").exists()
