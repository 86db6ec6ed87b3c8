from __future__ import annotations

import struct

import pytest
import torch
from PIL import Image

from enlarger.checkpoints.ncnn import read_ncnn
from enlarger.cli.main import main
from enlarger.errors import ModelError
from enlarger.networks.rrdb import CompactNet, CompactShape, RRDBNet, RRDBShape, build


def written(net, folder, *, half=True):
    """A network as ncnn's two files, by the rule in `reference/weights.md`."""
    lines, data = [], b""
    modules = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.PReLU))]
    if isinstance(net, RRDBNet):  # in the order in which they run, which is not that of the attributes
        last = [net.conv_body, net.conv_up1, net.conv_up2, net.conv_hr, net.conv_last]
        modules = [net.conv_first, *[m for m in net.body.modules() if isinstance(m, torch.nn.Conv2d)], *last]
    for number, module in enumerate(modules):
        if isinstance(module, torch.nn.PReLU):
            lines.append(f"PReLU PRelu_{number} 1 1 a b 0={module.weight.numel()}")
            data += module.weight.detach().numpy().astype("<f4").tobytes()
            continue
        weight = module.weight.detach().numpy()
        activation = "9=2 -23310=1,2.000000e-01"
        lines.append(f"Convolution Conv_{number} 1 1 a b 0={weight.shape[0]} 1=3 4=1 5=1 6={weight.size} {activation}")
        if half:
            raw = weight.astype("<f2").tobytes()
            data += struct.pack("<I", 0x01306B47) + raw + b"\0" * (-len(raw) % 4)
        else:
            data += struct.pack("<I", 0) + weight.astype("<f4").tobytes()
        data += module.bias.detach().numpy().astype("<f4").tobytes()
    head = ["7767517", f"{len(lines) + 1} 9", "Input in 0 1 data"]
    (folder / "net.param").write_text("\n".join([*head, *lines, ""]))
    (folder / "net.bin").write_bytes(data)
    return folder / "net.param", folder / "net.bin"


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("net", [RRDBNet(RRDBShape(6, 3, 2)), CompactNet(CompactShape(5, 3, 4))])
def test_what_was_written_comes_back_and_runs(net, half, tmp_path):
    tensors = read_ncnn(*written(net, tmp_path, half=half))
    rounded = {
        key: value.half().float() if half and value.ndim == 4 else value for key, value in net.state_dict().items()
    }
    assert tensors.keys() == rounded.keys()
    assert all(torch.equal(tensors[key].float(), rounded[key]) for key in rounded)
    x = torch.rand(1, 3, 6, 7)
    assert torch.equal(build(tensors, "a")(x), build(rounded, "b")(x))


def test_the_command_makes_a_model_that_the_engine_takes(tmp_path, capsys):
    param, binary = written(RRDBNet(RRDBShape(8, 3, 2)), tmp_path)
    command = ["models", "import-ncnn", str(param), str(binary)]
    assert main(command) == 0
    made = capsys.readouterr().out.strip()
    assert made == str(tmp_path / "net.safetensors")
    Image.new("RGB", (9, 7), (200, 90, 30)).save(tmp_path / "a.png")
    assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "a.png").stat().st_mode
    assert main(["upscale", str(tmp_path / "a.png"), "-e", "gan", "-m", made, "-o", str(tmp_path / "b.png")]) == 0
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (36, 28)
    assert main(command) == 5
    assert main([*command, "--overwrite"]) == 0
    assert main([*command, "-o", str(tmp_path / "absent" / "c.safetensors")]) == 5
    assert main(command[:-1]) == 2
    assert main(["models", "import-onnx"]) == 2
    assert not list(tmp_path.glob("*.part"))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    param, binary = written(RRDBNet(RRDBShape(6, 3, 1)), tmp_path)
    whole = binary.read_bytes()
    for data, message in ((whole[:-4], "too short"), (whole + b"\0\0\0\0", "4 bytes longer"), (b"", "too short")):
        binary.write_bytes(data)
        with pytest.raises(ModelError, match=message):
            read_ncnn(param, binary)
    binary.write_bytes(struct.pack("<I", 0x01234567) + whole[4:])
    with pytest.raises(ModelError, match="tag 0x1234567"):
        read_ncnn(param, binary)
    binary.unlink()
    with pytest.raises(ModelError, match=r"net\.bin cannot be read"):
        read_ncnn(param, binary)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "first line is not 7767517"),
        ("7767517\n1 1\nLSTM a 1 1 b c 0=4", "a layer LSTM"),
        ("7767517\n1 1\nConvolution a 1 1 b c 0=x", "not a whole number"),
        ("7767517\n1 1\nConvolution a 1 1 b c 0=4 1=3 5=1 6=7", "no convolution of the ESRGAN family"),
        ("7767517\n1 1\nConvolution a 1 1 b c 0=0 1=3 5=1 6=0", "no convolution of the ESRGAN family"),
    ],
)
def test_other_networks_and_damage_are_refused_with_a_word_of_what_is_wrong(tmp_path, text, message):
    (tmp_path / "net.param").write_text(text)
    (tmp_path / "net.bin").write_bytes(b"\0" * 64)
    with pytest.raises(ModelError, match=message):
        read_ncnn(tmp_path / "net.param", tmp_path / "net.bin")


def test_a_wrong_number_of_convolutions_is_no_esrgan(tmp_path):
    param, binary = written(RRDBNet(RRDBShape(6, 3, 1)), tmp_path)
    lines = param.read_text().splitlines()
    first = 4 + 6 * 3 * 9 * 2 + 6 * 4
    param.write_text("\n".join(lines[:3] + lines[4:]))
    binary.write_bytes(binary.read_bytes()[first:])
    with pytest.raises(ModelError, match="20 convolutions"):
        read_ncnn(param, binary)
