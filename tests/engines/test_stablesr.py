"""Engine stablesr: a tiny one as a user has it, from files, at any size; what is refused is said with its remedy."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import enlarger
from enlarger.checkpoints.stablesr import Published
from enlarger.checkpoints.tensors import Tensors, open_tensors
from enlarger.cli.main import main
from enlarger.engines import stablesr_files
from enlarger.engines.settings import StableSRSettings
from enlarger.engines.stablesr_files import native_size, predicted
from enlarger.engines.stablesr_parts import Description
from enlarger.errors import ModelError, SettingsError
from enlarger.settings import rules
from tests.checkpoints import published
from tests.engines.published_stablesr import envelope
from tests.engines.test_latent_contract import furthest, picture

FAST = {"steps": 2, "scale": 4}
TOKENS = "cond_stage_model.model.token_embedding.weight"


@pytest.fixture(scope="module")
def files(stablesr, tmp_path_factory):
    """The recorded model with all words of CLIP's vocabulary, and its CFW decoder."""
    folder = tmp_path_factory.mktemp("stablesr")
    tensors = {key: tensor.load(torch.float32) for key, tensor in open_tensors(stablesr / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    tensors[TOKENS] = torch.randn(49408, tensors[TOKENS].shape[1], generator=generator)
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(stablesr / "cfw.safetensors", folder)
    config = json.loads((stablesr / "config.json").read_text())
    config["text"] |= {"vocab_size": 49408, "start_token": 49406, "end_token": 49407}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def opened(folder, **machine):
    options = {"cfw": str(folder / "cfw.safetensors"), "device": "cpu", **machine}
    return enlarger.Upscaler("stablesr", str(folder / "model.safetensors"), **options)


@pytest.fixture(scope="module")
def upscaler(files):
    return opened(files)


@pytest.fixture(scope="module")
def plain(files):
    """Without CFW."""
    return opened(files, cfw=None)


# Sizes, tiles and kinds of picture


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (13, 22)])
def test_any_size_gives_exactly_the_size_asked_for(upscaler, height, width):
    assert upscaler(picture(height, width), **FAST).size == (4 * height, 4 * width)
    odd = upscaler(picture(height, width), steps=2, scale=2.7)
    assert odd.size == (int(2.7 * height + 0.5), int(2.7 * width + 0.5))
    assert upscaler(picture(height, width), steps=2, size=f"{7 * width}x{5 * height}").size == (5 * height, 7 * width)


@pytest.mark.slow
def test_several_tiles_a_forward_give_the_same_picture(files, upscaler):
    up, settings = opened(files), {**FAST, "tile": 64, "overlap": 32}
    engine = up.engine
    # In single precision these random networks blow up the rounding, which is another for other batches.
    engine.unet.double(), engine.encoder.double()
    engine.dtype = torch.float64
    sizes = []
    engine.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    one = up(picture(24, 40), **settings, batch=1)
    assert set(sizes) == {1}
    assert furthest(one, up(picture(24, 40), **settings, batch=3)) < 1e-5
    assert max(sizes) == 3
    assert furthest(one, upscaler(picture(24, 40), **FAST, tile=256)) > 1e-3  # tiles see less, so the meter sees


@pytest.mark.slow
def test_a_picture_smaller_than_a_tile_is_one_tile(upscaler):
    small = picture(9, 11)
    assert furthest(upscaler(small, **FAST, tile=64), upscaler(small, **FAST, tile=64, batch=4)) == 0
    assert upscaler(small, **FAST, tile=512).size == (36, 44)


def test_alpha_grey_and_depth_come_back(upscaler):
    eight = (picture(8, 10) * 255).astype(np.uint8)
    assert upscaler(eight, **FAST).pixels.dtype == np.uint8
    assert upscaler(eight.astype(np.uint16) * 257, **FAST).pixels.dtype == np.uint16
    assert upscaler(eight[..., 0], **FAST).pixels.shape == (32, 40, 1)
    result = upscaler(np.concatenate([eight, np.full((8, 10, 1), 255, np.uint8)], 2), **FAST)
    assert result.alpha is not None
    assert result.alpha.shape == (32, 40)
    assert result.alpha.min() == 255


def test_the_seed_makes_the_picture(upscaler):
    source = picture(8, 9)
    assert furthest(upscaler(source, **FAST, seed=3), upscaler(source, **FAST, seed=3)) == 0
    assert furthest(upscaler(source, **FAST, seed=3), upscaler(source, **FAST, seed=4)) > 1e-3


# CFW and settings


def test_weight_0_is_the_plain_autoencoder(upscaler, plain):
    source = picture(8, 9)
    off = upscaler(source, **FAST, cfw_weight=0.0)
    assert furthest(off, plain(source, **FAST)) == 0
    assert furthest(off, upscaler(source, **FAST)) > 1e-4
    assert furthest(upscaler(source, **FAST), upscaler(source, **FAST, cfw_weight=0.5)) == 0
    with pytest.raises(SettingsError, match="--cfw"):
        plain(source, **FAST, cfw_weight=0.7)


CHANGES = {
    "seed": {"seed": 5},
    "sample": {"samples": 2, "sample": 2},
    "steps": {"steps": 5},
    "scheduler": {"scheduler": "ddim"},
    "start": {"start": "noise"},
    "strength": {"strength": 0.5},
    "cfw_weight": {"cfw_weight": 1.0},
    "color_fix": {"color_fix": "adain"},
    "prompt": {"prompt": "a red house"},
    "negative_prompt": {"negative_prompt": "grey"},
    "guidance_scale": {"guidance_scale": 5.0},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "tile": {"tile": 80},
    "consistency": {"consistency": 1.0},
    "compatibility": {"compatibility": "original"},
    "preset": {"preset": "turbo"},
}
"""Setting -> what changes the picture."""

ELSEWHERE = {
    "scale", "size", "longest", "megapixels", "page", "max_pixels", "batch", "samples", "overlap",
    "eta", "reference", "reference_strength", "reference_until",
}  # fmt: skip


@pytest.mark.slow
def test_every_setting_changes_the_picture(upscaler):
    source = picture(10, 12)
    start = {**FAST, "steps": 3, "prompt": "a cat", "guidance_scale": 2.0, "tile": 64}
    made = upscaler(source, **start)
    for setting in rules(StableSRSettings):
        if setting in ELSEWHERE:
            continue
        values = {**start, **CHANGES[setting]}
        if setting == "preset":
            del values["steps"]
        assert furthest(upscaler(source, **values), made) > 1e-4, setting
    ddim = {**start, "scheduler": "ddim"}
    assert furthest(upscaler(source, **ddim), upscaler(source, **ddim, eta=1.0)) > 1e-3
    wide = {**FAST, "steps": 1, "tile": 64, "cfw_weight": 0.0}
    one, other = (upscaler(picture(10, 26), **wide, overlap=overlap) for overlap in (8, 32))
    assert furthest(one, other) > 1e-4


def test_without_guidance_the_negative_prompt_is_not_read(upscaler):
    source, start = picture(8, 8), {**FAST, "prompt": "a cat"}
    made = upscaler(source, **start)
    assert furthest(made, upscaler(source, **start, negative_prompt="grey", guidance_scale=1.0)) == 0
    assert furthest(made, upscaler(source, **FAST)) > 1e-4


def test_brackets_are_characters(upscaler):
    source = picture(8, 8)
    one, other = (upscaler(source, **FAST, prompt=prompt) for prompt in ("a cat", "a (cat:1.0)"))
    assert furthest(one, other) > 1e-4


def test_strength_is_the_share_of_the_steps_that_run(upscaler):
    source, start = picture(8, 10), {"scale": 4, "steps": 20, "color_fix": "none", "cfw_weight": 0.0}
    calls = []
    handle = upscaler.engine.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    upscaler(source, **start, strength=0.1)
    handle.remove()
    assert len(calls) == 2


def test_the_reference_pulls_and_its_path_is_not_kept(upscaler, tmp_path):
    other = tmp_path / "secret" / "face.png"
    other.parent.mkdir()
    Image.fromarray((picture(12, 14)[::-1] * 255).astype(np.uint8)).save(other)
    source, start = picture(8, 10), {**FAST, "steps": 4}
    made = upscaler(source, **start)
    pulled = upscaler(source, **start, reference=str(other))
    assert furthest(made, pulled) > 1e-3
    assert furthest(pulled, upscaler(source, **start, reference=str(other), reference_strength=0.3)) > 1e-4
    assert furthest(pulled, upscaler(source, **start, reference=str(other), reference_until=600)) > 1e-4
    assert furthest(made, upscaler(source, **start, reference=str(other), reference_strength=0.0)) < 1e-5
    assert "secret" not in json.dumps(pulled.record())
    pulled.save(tmp_path / "out.png")
    assert b"secret" not in (tmp_path / "out.png").read_bytes()


def test_the_wavelet_fix_keeps_the_inputs_colours(upscaler):
    source = np.full((16, 16, 3), (0.8, 0.3, 0.5), np.float32)
    off = upscaler(source, **FAST, color_fix="none").pixels.mean((0, 1))
    for fix in ("wavelet", "adain"):
        made = upscaler(source, **FAST, color_fix=fix).pixels.mean((0, 1))
        assert np.abs(made - source[0, 0]).max() < np.abs(off - source[0, 0]).max()


def test_presets_set_what_they_say_and_single_options_win(upscaler, plain):
    made = {preset: upscaler.settings(preset=preset) for preset in StableSRSettings.presets}
    assert [made[name].steps for name in ("faithful", "balanced", "vivid", "turbo", "768v")] == [200, 50, 200, 4, 200]
    assert made["768v"].tile == 768  # which share what is usual, half of what the model was trained on
    assert upscaler.settings(preset="faithful", steps=7).steps == 7
    for preset in StableSRSettings.presets:
        assert upscaler(picture(4, 4), scale=4, preset=preset, steps=1, tile=64).size == (16, 16)
    assert plain(picture(4, 4), scale=4, preset="turbo", tile=64).size == (16, 16)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tile": 56}, "at least 64"),
        ({"cfw_weight": 1.5}, "0 to 1"),
        ({"strength": 0}, "above 0"),
        ({"strength": 0.5, "start": "noise"}, "start noise"),
        ({"eta": 0.5}, "scheduler ddim"),
        ({"steps": 0}, "1 to 1000"),
        ({"color_fix": "wavelets"}, "wavelet"),
        ({"noise_level": 3}, "no setting"),
    ],
)
def test_wrong_values_are_refused_with_what_is_right(upscaler, values, said):
    with pytest.raises(SettingsError, match=said):
        upscaler(picture(8, 8), **{**FAST, **values})


# The command, and files


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """`enlarger upscale` of a small picture in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray((picture(7, 9) * 255).astype(np.uint8)).save("photo.png")

    def run(*options):
        capsys.readouterr()
        code = main([str(word) for word in ("upscale", "photo.png", "-e", "stablesr", "--device", "cpu", *options)])
        return code, *capsys.readouterr()

    return run


def refused(call, code, *options):
    """The one line of a refusal, after which nothing was written."""
    before = sorted(Path().iterdir())
    done, _, error = call(*options)
    assert done == code, error
    lines = error.splitlines()
    assert len([line for line in lines if line.startswith("enlarger: error: ")]) == 1
    assert "Traceback" not in error
    assert sorted(Path().iterdir()) == before
    return lines[-1]


def test_the_command_writes_the_size_asked_for_and_says_the_licence_once(call, files):
    model, cfw = files / "model.safetensors", files / "cfw.safetensors"
    code, _, error = call("-m", model, "--cfw", cfw, "-s", "3.5", "--steps", "2", "-o", "big.png")
    assert code == 0, error
    with Image.open("big.png") as made:
        assert made.size == (32, 25)
        assert str(files) not in str(made.info)
    assert error.count("S-Lab") == 1
    assert "is taken to predict" in error


def test_tiles_that_are_too_small_or_share_too_much_end_with_2(call, files):
    model = files / "model.safetensors"
    assert "at least 64" in refused(call, 2, "-m", model, "--tile", "32", "--steps", "1")
    assert "at most 64" in refused(call, 2, "-m", model, "--tile", "128", "--overlap", "72", "--steps", "1")


def test_a_wrong_file_is_told_with_where_it_belongs(call, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    told = refused(call, 4, "-m", files / "cfw.safetensors")
    assert "CFW" in told
    assert "--cfw" in told
    told = refused(call, 4, "-m", files / "model.safetensors", "--cfw", files / "model.safetensors")
    assert "--model" in told
    parts = published.parts("controlnet-sd15")
    control = published.write_file(folder / "net.bin", published.original("controlnet-sd15", parts), "pickle")
    told = refused(call, 4, "-m", control)
    assert "ControlNet" in told
    assert "-e controlnet" in told
    sd15 = published.write_folder(folder / "sd15", published.parts("sd15"))
    assert "-e img2img" in refused(call, 4, "-m", sd15)
    assert "-m" in refused(call, 4)
    autoencoder = folder / "vae.safetensors"
    tensors = open_tensors(files / "cfw.safetensors")
    save_file({key: each.load() for key, each in tensors.items() if "fusion" not in key}, autoencoder)
    for option in (("-m", autoencoder), ("-m", files / "model.safetensors", "--cfw", autoencoder)):
        assert "--vae" in refused(call, 4, *option)


def copied(files, folder, change):
    """The model with another inventory or other numbers."""
    tensors = load_file(files / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(files / "config.json", folder)
    return folder / "model.safetensors"


INPUT = "model.diffusion_model.input_blocks.0.0.weight"
SPADE = "model.diffusion_model.input_blocks.1.0.spade.mlp_gamma.weight"


def test_faulty_keys_are_told_by_name(call, files, tmp_path_factory):
    def missing(tensors):
        del tensors[SPADE]

    def reshaped(tensors):
        tensors[INPUT] = tensors[INPUT][:-1].clone()

    def infinite(tensors):
        tensors[SPADE][0] = float("nan")

    for change, key, said in (
        (missing, SPADE, "missing"),
        (reshaped, INPUT, "of the wrong shape"),
        (infinite, "spade.mlp_gamma.weight", "not finite"),
    ):
        told = refused(call, 4, "-m", copied(files, tmp_path_factory.mktemp("faulty"), change))
        assert key in told
        assert said in told


def test_a_truncated_file_is_damaged(call, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("truncated")
    shutil.copy(files / "config.json", folder)
    whole = (files / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) * 2 // 3])
    assert "model" in refused(call, 4, "-m", folder / "model.safetensors")


def test_a_trimmed_module_over_a_base_is_the_whole_model(call, files, upscaler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trimmed")
    whole = load_file(files / "model.safetensors")
    own = {key for key in whole if key.startswith("structcond") or ".spade." in key}
    save_file({key: whole[key] for key in own}, folder / "module.safetensors")
    save_file({key: value for key, value in whole.items() if key not in own}, folder / "base.safetensors")
    shutil.copy(files / "config.json", folder)
    up = enlarger.Upscaler(
        "stablesr", str(folder / "module.safetensors"), base=str(folder / "base.safetensors"),
        cfw=str(files / "cfw.safetensors"), device="cpu",
    )  # fmt: skip
    assert furthest(up(picture(6, 8), **FAST), upscaler(picture(6, 8), **FAST)) < 1e-5
    for one in ("unet", "encoder", "text"):
        wanted = getattr(upscaler.engine, one).state_dict()
        assert all(torch.equal(each, wanted[key]) for key, each in getattr(up.engine, one).state_dict().items())
    assert "--base" in refused(call, 4, "-m", folder / "module.safetensors")
    assert "--base takes" in refused(call, 4, "-m", folder / "module.safetensors", "--base", files / "cfw.safetensors")
    told = refused(call, 4, "-m", files / "model.safetensors", "--base", folder / "base.safetensors")
    assert "needs no --base" in told
    sd15 = published.write_folder(folder / "sd15", published.parts("sd15"))
    told = refused(call, 4, "-m", folder / "module.safetensors", "--base", sd15)
    assert "Stable Diffusion 1.x" in told


def test_no_part_is_taken_from_memory():
    with pytest.raises(ModelError, match="--model FILE"):
        enlarger.Upscaler("stablesr", components={"unet": torch.nn.Identity()})
    with pytest.raises(ModelError, match="ships no weights"):
        enlarger.Upscaler("stablesr")


def test_a_training_checkpoint_gives_the_same_bytes_as_safetensors(call, files, upscaler, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("training")
    shutil.copy(files / "config.json", folder)
    model = envelope(folder / "x.ckpt", load_file(files / "model.safetensors"))
    loose = {key: tensor.load(torch.float32) for key, tensor in open_tensors(files / "cfw.safetensors").items()}
    cfw = envelope(folder / "y.ckpt", loose)
    up = enlarger.Upscaler("stablesr", str(model), cfw=str(cfw), device="cpu")
    wanted = upscaler(picture(6, 8), **FAST).pixels
    assert np.array_equal(up(picture(6, 8), **FAST).pixels, wanted)
    assert "pytorch_lightning" not in sys.modules

    converted = [folder / "a" / "model.safetensors", folder / "a" / "cfw.safetensors"]
    converted[0].parent.mkdir()
    shutil.copy(files / "config.json", folder / "a")
    for source, target in zip((model, cfw), converted, strict=True):
        assert main(["models", "convert", str(source), str(target)]) == 0, capsys.readouterr().err
    made = []
    twins = [files / "model.safetensors", files / "cfw.safetensors"]
    for place, (weights, decoder) in enumerate(((model, cfw), converted, twins)):
        code, _, error = call("-m", weights, "--cfw", decoder, "--steps", "2", "--no-metadata", "-o", f"{place}.png")
        assert code == 0, error
        made.append(Path(f"{place}.png").read_bytes())
    assert made[0] == made[1] == made[2]


# What a model predicts, and on what it was trained


@dataclass
class Found:
    """As much of a `Checkpoint` as is asked."""

    path: Path
    digest: str = "0123456789abcdef"
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def everything(self) -> Tensors:
        return Tensors({}, metadata=self.metadata)


def test_what_it_predicts_is_said_by_the_option_then_beside_the_file_then_by_its_digest_then_by_its_name(
    tmp_path, monkeypatch
):
    found = Found(tmp_path / "stablesr_768v_000139.ckpt")
    assert predicted(None, None, found) == ("v_prediction", "as its name says")
    assert native_size(None, found, "v_prediction") == 768
    # Whatever said less is overruled by what says more.
    known = {found.digest: Published("stablesr_000117.ckpt", "epsilon", 512)}
    monkeypatch.setattr(stablesr_files, "CATALOG", known)
    kind, why = predicted(None, None, found)
    assert (kind, "stablesr_000117.ckpt" in why) == ("epsilon", True)
    assert native_size(None, found, kind) == 512
    beside = found.path.with_suffix(".yaml")
    beside.write_text(
        "model:\n  params:\n    parameterization: v\n    image_size: 640\n    unet:\n      image_size: 32\n"
    )
    assert predicted(None, None, found) == ("v_prediction", "as the configuration beside it says")
    assert native_size(None, found, "v_prediction") == 640
    told = Description.of_config({"parameterization": "eps", "image_size": 96})
    assert predicted(None, told, found) == ("epsilon", "as the configuration beside it says")
    assert native_size(told, found, "epsilon") == 96
    assert predicted("v_prediction", told, found) == ("v_prediction", "as --prediction says")


@pytest.mark.parametrize(
    ("name", "kind", "native"),
    [
        ("stablesr_000117", "epsilon", 512),
        ("stablesr_turbo", "epsilon", 512),
        ("stablesr_768v_000139", "v_prediction", 768),
        ("webui_768v_139", "v_prediction", 768),
        ("face_stablesr_000050", "v_prediction", 512),
        ("mine", "epsilon", 512),
    ],
)
def test_published_files_are_known_by_their_names(tmp_path, name, kind, native):
    found = Found(tmp_path / f"{name}.ckpt")
    assert predicted(None, None, found)[0] == kind
    assert native_size(None, found, kind) == native


def test_what_contradicts_the_network_is_said_aloud(call, files):
    model = files / "model.safetensors"
    code, _, error = call("-m", model, "--prediction", "v_prediction", "--steps", "1", "-o", "a.png")
    assert code == 0, error
    assert "is taken to predict velocity (v): as --prediction says" in error
    code, _, error = call("-m", model, "--prediction", "epsilon", "--steps", "1", "-o", "b.png")
    assert "0% of that noise back" in error  # its weights are random
    assert "try --prediction v_prediction" in error


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"structcond": {"use_scale_shift_norm": True}}, "use_scale_shift_norm"),
        ({"unet": {"num_head_channels": -1}}, "num_heads"),
        ({"parameterization": "x0"}, "x0"),
        ({"cfw": {"ddconfig": {"ch": 1}}}, "another autoencoder"),
    ],
)
def test_a_configuration_that_nothing_here_can_build_is_refused(config, said):
    with pytest.raises(ModelError, match=said):
        Description.of_config(config)


def test_what_concerns_training_alone_does_not_matter():
    first = {"ch": 64, "ch_mult": [1, 2, 2, 2], "resolution": 256, "attn_resolutions": []}
    config = {
        "unet": {"use_checkpoint": True, "legacy": True},
        "first_stage": {"ddconfig": first},
        "cfw": {"ddconfig": {**first, "resolution": 512, "dropout": 0.0}},
    }
    assert Description.of_config(config).autoencoder.widths == (64, 128, 128, 128)


def test_heads_may_be_told_by_their_number_or_their_width():
    unet = {"num_head_channels": -1, "num_heads": 8}
    told = Description.of_config({"unet": unet, "structcond": {"num_head_channels": 32}})
    assert (told.unet.head, told.unet.heads) == (0, 8)
    assert [told.encoder.heads_of(width) for width in (64, 256)] == [2, 8]
