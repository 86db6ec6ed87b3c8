"""LoRA: W + scale * alpha / rank * BA under all the names that files have for a layer, and clear words for all else."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from enlarger.checkpoints import keys
from enlarger.checkpoints.configs import published
from enlarger.checkpoints.lora import read_lora
from enlarger.checkpoints.tensors import LazyTensor, Tensors
from enlarger.errors import ModelError

from tests.engines import tiny  # isort: skip  (skips without diffusers)

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.1.resnets.1.conv1"
FC1 = "encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def unet():
    return tiny.unet()


@pytest.fixture(scope="module")
def text():
    return tiny.text_encoder(400)


def stored(tensors, **metadata):
    lazy = {name: LazyTensor(tuple(each.shape), each.dtype, lambda each=each: each) for name, each in tensors.items()}
    return Tensors(lazy, metadata)


def factors(layer, rank=3, seed=0):
    """A and B for a layer, and their product in its shape."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.weight
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
    return down, up, torch.einsum("or,r...->o...", up.flatten(1), down)


def applied(tensors, part, module, scale=1.0, metadata=None):
    """Weights before and after, by name; the module itself is left as it was."""
    before = {name: value.clone() for name, value in module.named_parameters()}
    kept = {name: layer.weight for name, layer in module.named_modules() if hasattr(layer, "weight")}
    lora = read_lora(stored(tensors, **(metadata or {})), "style")
    try:
        notes = lora.apply({part: module}, scale)
        after = {name: value.detach().clone() for name, value in module.named_parameters()}
    finally:
        for name, weight in kept.items():
            module.get_submodule(name).weight = weight
    return before, after, notes


NAMES = {
    "kohya": lambda path: (f"lora_unet_{path.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"),
    "peft": lambda path: (f"unet.{path}", ".lora_A.weight", ".lora_B.weight"),
    "peft alone": lambda path: (f"base_model.model.{path}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "older diffusers": lambda path: (f"unet.{path}", ".lora.down.weight", ".lora.up.weight"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("path", [TO_Q, TO_OUT, CONV])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_a_layer_moves_by_scale_times_alpha_over_rank_times_the_product(unet, kind, path, alpha):
    down, up, product = factors(unet.get_submodule(path))
    stem, first, second = NAMES[kind](path)
    tensors = {stem + first: down, stem + second: up}
    if alpha is not None:
        tensors[stem + ".alpha"] = torch.tensor(alpha)
    before, after, notes = applied(tensors, "unet", unet, 0.8)
    expected = before[f"{path}.weight"] + 0.8 * (1 if alpha is None else alpha / 3) * product
    assert torch.allclose(after.pop(f"{path}.weight"), expected, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert notes == ()


@pytest.mark.parametrize("name", ["to_q", "to_out"])
def test_the_oldest_files_name_attention_s_processor(unet, name):
    path = TO_Q if name == "to_q" else TO_OUT
    down, up, product = factors(unet.get_submodule(path))
    stem = f"{path.removesuffix('.0').removesuffix(f'.{name}')}.processor.{name}_lora"
    before, after, _ = applied({f"{stem}.down.weight": down, f"{stem}.up.weight": up}, "unet", unet)
    assert torch.allclose(after[f"{path}.weight"], before[f"{path}.weight"] + product, atol=1e-5)


@pytest.mark.parametrize(
    "stem",
    [
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_{}.weight",
        "lora_te1_text_model_encoder_layers_1_mlp_fc1.lora_{}.weight",
        "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.{}.weight",
    ],
)
def test_text_encoders_have_their_own_beginnings(text, stem):
    layer = next(layer for name, layer in text.named_modules() if name.endswith(FC1))
    down, up, product = factors(layer)
    tensors = {stem.format("down"): down, stem.format("up"): up}
    before, after, _ = applied(tensors, "text_encoder", text)
    name = next(name for name in after if name.endswith(f"{FC1}.weight"))
    assert torch.allclose(after[name], before[name] + product, atol=1e-5)
    with pytest.raises(ModelError, match="none of its 1 layers is here"):
        applied(
            {name.replace("lora_te_", "lora_te2_"): each for name, each in tensors.items()}
            if "lora_te_" in stem
            else {f"lora_te2_x.lora_{kind}.weight": each for kind, each in (("down", down), ("up", up))},
            "text_encoder",
            text,
        )


@pytest.mark.parametrize("model", ["sd15", "sd2", "sdxl"])
def test_every_layer_of_the_published_unets_is_known_by_its_original_name_too(model):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(dict(published(model).find("unet")))
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    originals = {name: keys.published_unet(name, unet.config.layers_per_block + 1) for name in layers}
    assert all(originals.values())
    # The way there, which is tested on its own, brings every name back.
    lazy = LazyTensor((1,), torch.float32, lambda: torch.zeros(1))
    for place in (0, -1):  # an upsampler has two names, of which a model uses one
        given = {f"{names[place]}.weight": lazy for names in originals.values()}
        assert set(keys.unet(Tensors(given))) == {f"{name}.weight" for name in layers}


def test_a_kernel_taken_apart_is_put_together(unet):
    weight = unet.get_submodule(CONV).weight
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(2, weight.shape[1], 1, 1, generator=generator)
    mid = torch.randn(2, 2, 3, 3, generator=generator)
    up = torch.randn(weight.shape[0], 2, 1, 1, generator=generator)
    stem = f"lora_unet_{CONV.replace('.', '_')}"
    tensors = {f"{stem}.lora_{name}.weight": each for name, each in (("down", down), ("mid", mid), ("up", up))}
    before, after, _ = applied(tensors, "unet", unet)
    # Three convolutions one after the other are one with the product's kernel.
    seen = torch.randn(1, weight.shape[1], 5, 5, generator=generator)
    apart = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(seen, down), mid, padding=1), up)
    change = after[f"{CONV}.weight"] - before[f"{CONV}.weight"]
    assert torch.allclose(nn.functional.conv2d(seen, change, padding=1), apart, atol=1e-3)


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ({"unet.lora_alpha": 6}, 2.0),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 9}}, 3.0),
        ({"unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / 3**0.5),
        ({"text_encoder.lora_alpha": 6}, 1.0),
    ],
)
def test_peft_s_configuration_in_the_metadata_says_alpha(unet, said, factor):
    down, up, product = factors(unet.get_submodule(TO_Q))
    tensors = {f"unet.{TO_Q}.lora_A.weight": down, f"unet.{TO_Q}.lora_B.weight": up}
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    before, after, _ = applied(tensors, "unet", unet, metadata=metadata)
    name = f"{TO_Q}.weight"
    assert torch.allclose(after[name], before[name] + factor * product, atol=1e-5)


def test_scale_0_keeps_every_bit_and_weights_in_half_precision_are_changed_in_full(unet):
    down, up, product = factors(unet.get_submodule(TO_Q))
    tensors = {f"unet.{TO_Q}.lora_A.weight": down, f"unet.{TO_Q}.lora_B.weight": up}
    before, after, _ = applied(tensors, "unet", unet, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    half = nn.Module.to(tiny.unet(), torch.bfloat16)
    before, after, _ = applied(tensors, "unet", half, 0.5)
    weight = before[f"{TO_Q}.weight"]
    assert torch.equal(after[f"{TO_Q}.weight"], (weight.float() + 0.5 * product).to(torch.bfloat16))


def test_layers_without_a_place_are_told_and_a_file_without_any_is_refused(unet):
    down, up, _ = factors(unet.get_submodule(TO_Q))
    good = {f"unet.{TO_Q}.lora_A.weight": down, f"unet.{TO_Q}.lora_B.weight": up}
    bad = {"unet.nowhere.to_q.lora_A.weight": down, "unet.nowhere.to_q.lora_B.weight": up}
    *_, notes = applied({**good, **bad}, "unet", unet)
    assert notes == (
        "LoRA style: 1 of 2 layers have no place in this model, such as unet's nowhere_to_q; the others are used",
    )
    with pytest.raises(ModelError, match="none of its 1 layers is here, such as unet's nowhere_to_q"):
        applied(bad, "unet", unet)
    with pytest.raises(ModelError, match=r"incomplete: unet\.nowhere\.to_q has only one"):
        applied({"unet.nowhere.to_q.lora_A.weight": down}, "unet", unet)
    wide = {f"unet.{TO_Q}.lora_A.weight": torch.randn(3, 99), f"unet.{TO_Q}.lora_B.weight": up}
    with pytest.raises(ModelError, match=r"made for another model: it changes .*to_q by 16 x 99, and here .* 16 x 16"):
        applied(wide, "unet", unet)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("oft_diag", "OFT"),
        ("diff", "full differences"),
        ("lora_B.bias", "biases"),
    ],
)
def test_other_kinds_are_refused_by_name(unet, ending, kind):
    down, up, _ = factors(unet.get_submodule(TO_Q))
    stem = f"lora_unet_{TO_Q.replace('.', '_')}"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.{ending}": up}
    with pytest.raises(ModelError, match=f"style holds {re.escape(kind)}.*take the LoRA version"):
        read_lora(stored(tensors), "style")
    with pytest.raises(ModelError, match=r"is no LoRA that is known here: other\.weight"):
        read_lora(stored({"other.weight": up}), "style")
