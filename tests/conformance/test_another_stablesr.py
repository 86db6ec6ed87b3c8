"""The script of StableSR's numbers on a folder that it has never seen: another model, other sizes, v-prediction.

The folder is made here. What can be computed by plain arithmetic is (`plain_stablesr`): all networks and processes,
tiles, colours, bytes. Of the degradations only the order and the sizes are; their operations are the product's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from enlarger.engines.stablesr_files import Shelf
from enlarger.engines.stablesr_parts import Description, fusion_part
from enlarger.picture import degrade
from tests.conformance import plain_stablesr as plain
from tests.conformance import scripts
from tests.engines.published_stablesr import envelope

pytestmark = pytest.mark.slow

VELOCITY: dict[str, Any] = {
    "variant": "another",
    "parameterization": "v",
    "image_size": 96,
    "latent_channels": 4,
    "downsample_factor": 4,
    "scale_factor": 0.31,
    "schedule": {
        "timesteps": 800, "linear_start": 0.001, "linear_end": 0.014, "v_posterior": 0.0, "clip_denoised": False,
        "sampling_steps_in_fixtures": 5, "table_steps": [70, 7, 5],
    },
    "unet": {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2], "num_res_blocks": 2,
        "channel_mult": [1, 2, 3], "num_head_channels": 8, "use_spatial_transformer": True,
        "use_linear_in_transformer": True, "transformer_depth": 1, "context_dim": 64, "legacy": False,
        "semb_channels": 32,
    },
    "structcond": {
        "in_channels": 4, "model_channels": 64, "out_channels": 32, "num_res_blocks": 1,
        "attention_resolutions": [1, 4], "channel_mult": [1, 1, 2], "num_heads": 2, "num_head_channels": -1,
    },
    "first_stage": {
        "embed_dim": 4, "ddconfig": {"z_channels": 4, "ch": 32, "ch_mult": [1, 2, 3], "num_res_blocks": 2},
    },
    "cfw": {
        "embed_dim": 4, "ddconfig": {"z_channels": 4, "ch": 32, "ch_mult": [1, 2, 3], "num_res_blocks": 2},
        "num_fuse_block": 2, "num_grow_ch": 16,
    },
    "text": {
        "context_length": 20, "vocab_size": 90, "width": 64, "heads": 4, "layers": 4, "start_token": 88,
        "end_token": 89, "pad_token": 3,
    },
    "canvas": {"tile_size": 24, "tile_overlap": 16},
}  # fmt: skip
"""Three levels, so a factor of 4; tiles that share more than half of themselves; steps that divide nothing."""

NOISE: dict[str, Any] = {
    **VELOCITY,
    "parameterization": "eps",
    "image_size": 80,
    "downsample_factor": 8,
    "schedule": {
        "timesteps": 1000, "linear_start": 0.0009, "linear_end": 0.011, "v_posterior": 0.0, "clip_denoised": False,
        "sampling_steps_in_fixtures": 3, "table_steps": [3, 9],
    },
    "unet": {
        **VELOCITY["unet"], "channel_mult": [1, 2, 1, 2], "attention_resolutions": [1, 8], "num_res_blocks": 1,
    },
    "structcond": {**VELOCITY["structcond"], "channel_mult": [1, 1, 1, 1], "attention_resolutions": [8, 2]},
    "first_stage": {"ddconfig": {"z_channels": 4, "ch": 32, "ch_mult": [2, 1, 1, 2], "num_res_blocks": 1}},
    "cfw": {
        "ddconfig": {"z_channels": 4, "ch": 32, "ch_mult": [2, 1, 1, 2], "num_res_blocks": 1}, "num_fuse_block": 1,
        "num_grow_ch": 32,
    },
    "canvas": {"tile_size": 10, "tile_overlap": 2},
}  # fmt: skip
"""Four levels; attention at the first and the last alone; three steps, whose uniform list has four."""


class Recorder:
    """Makes the folder: random weights and inputs, and what plain arithmetic makes of them."""

    def __init__(self, place: Path, config: dict[str, Any]) -> None:
        self.place, self.config = place, config
        self.schedule, self.scale, self.kind = (
            config[name] for name in ("schedule", "scale_factor", "parameterization")
        )
        self.steps, self.factor = self.schedule["sampling_steps_in_fixtures"], config["downsample_factor"]
        self.random = np.random.default_rng(15)
        self.cases: list[dict[str, str]] = []
        self.weights = self.made_up(Shelf(Description.of_config(self.config)))
        description = Description.of_config(self.config)
        fusion = fusion_part(description.autoencoder, description.fusion)
        first = plain.below(self.weights, "first_stage_model.")
        self.cfw = first | self.filled(fusion.slots())
        self.first = {key: value for key, value in self.cfw.items() if ".fusion_layer_" not in key}
        self.betas = plain.betas_of(self.schedule)
        self.shares = plain.shares_of(self.betas)
        self.kept = plain.spaced(self.steps, len(self.betas))
        self.tile, self.overlap = self.config["canvas"]["tile_size"], self.config["canvas"]["tile_overlap"]

    def filled(self, slots: Any) -> dict[str, Tensor]:
        """Random numbers for published keys, of sizes that keep a network's signals about as large."""
        made = {}
        for key, (shape, _) in slots.items():
            numbers = self.random.standard_normal(shape).astype(np.float32)
            if len(shape) > 1:
                numbers /= np.sqrt(np.prod(shape[1:]))
            else:
                numbers = 0.1 * numbers + (1 if key.endswith("weight") else 0)
            made[key] = torch.from_numpy(numbers)
        return made

    def made_up(self, shelf: Shelf) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for part in (shelf.unet, shelf.encoder, shelf.vae, shelf.text):
            made |= self.filled(part.slots())
        width = self.config["text"]["width"]
        last = f"cond_stage_model.model.transformer.resblocks.{self.config['text']['layers'] - 1}"
        return made | {
            "betas": torch.zeros(9), "logvar": torch.zeros(9), f"{last}.ln_1.weight": torch.ones(width),
            "cond_stage_model.model.text_projection": torch.ones(width, width),
            "cond_stage_model.model.logit_scale": torch.tensor(4.6),
        }  # fmt: skip

    def normal(self, *shape: int) -> Any:
        return self.random.standard_normal(shape).astype(np.float32)

    def write(self, file: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """A file of arrays; outputs are what is to be agreed with."""
        arrays = {name: np.asarray(value) for name, value in {**inputs, **outputs}.items()}
        np.savez(self.place / f"{file}.npz", **arrays)
        self.cases += [{"name": f"{file}/{name}"} for name in outputs]

    def all(self) -> None:
        (self.place / "config.json").write_text(json.dumps(self.config))
        save_file(self.weights, self.place / "model.safetensors")
        save_file({**self.cfw, "loss.logvar": torch.zeros(())}, self.place / "cfw.safetensors")
        for record in (
            self.schedules, self.text, self.networks, self.vae, self.fused, self.sample, self.canvas, self.ddim,
            self.face, self.loss, self.color, self.bytes, self.split, self.pipeline, self.operations,
            self.degradation, self.envelope,
        ):  # fmt: skip
            record()
        (self.place / "manifest.json").write_text(json.dumps({"cases": self.cases}))

    # networks

    def empty(self) -> Tensor:
        told = self.config["text"]
        ids = [told["start_token"], told["end_token"]]
        return self.context(ids + [told["pad_token"]] * (told["context_length"] - len(ids)))

    def context(self, ids: list[int]) -> Tensor:
        return plain.text(self.weights, self.config["text"], torch.tensor([ids]))

    def predict(self, x: Tensor, latent: Tensor, t: int, context: Tensor) -> Tensor:
        """The UNet under the encoder's maps, item by item."""
        made, when = [], torch.tensor([t])
        for item in range(len(x)):
            told = plain.encoder(self.weights, self.config["structcond"], latent[item : item + 1], when)
            one = slice(item, item + 1) if len(context) > 1 else slice(0, 1)
            made.append(plain.unet(self.weights, self.config["unet"], x[item : item + 1], when, context[one], told))
        return torch.cat(made)

    def text(self) -> None:
        ids = self.random.integers(0, 88, (2, self.config["text"]["context_length"]))
        self.write("text", {"ids": ids}, {"context": torch.cat([self.context(row.tolist()) for row in ids])})

    def networks(self) -> None:
        inputs, outputs, inside, inner = {}, {}, {}, {}
        for case, shape, times in (("sq", (2, 4, 12, 12), [700, 3]), ("rect", (1, 4, 8, 20), [411])):
            latent, x, t = self.normal(*shape), self.normal(*shape), np.array(times)
            context = self.normal(shape[0], self.config["text"]["context_length"], self.config["unet"]["context_dim"])
            maps = plain.encoder(self.weights, self.config["structcond"], torch.tensor(latent), torch.tensor(t))
            inputs |= {f"{case}_latent": latent, f"{case}_t": t}
            for level, each in enumerate(maps):
                name = f"{case}_map_w{each.shape[-1]}"
                outputs[name if level else f"{name}_ch0_7"] = each if level else each[:, :8]
            seen: dict[str, Tensor] = {}
            inside |= {f"{case}_x": x, f"{case}_t": t, f"{case}_context": context}
            inner[f"{case}_out"] = plain.unet(
                self.weights, self.config["unet"], torch.tensor(x), torch.tensor(t), torch.tensor(context), maps, seen
            )
            if case == "sq":
                inner |= {"sq_time_emb": seen["time_embed"], "sq_h_mid": seen["middle_block"][:1]}
                for name in ("in1", "in3", "in5", "out2", "out4"):
                    inner[f"sq_h_{name}_ch0_7"] = seen[f"{name[:-1]}put_blocks.{name[-1]}"][:1, :8]
        self.write("encoder", inputs, outputs)
        self.write("unet", inside, inner)

    def vae(self) -> None:
        config = self.config["first_stage"]["ddconfig"]
        image = np.tanh(self.normal(1, 3, 6 * self.factor, 10 * self.factor))
        noise, latent = self.normal(1, 4, 6, 10), self.normal(1, 4, 6, 10)
        moments, _ = plain.encode(self.first, config, torch.tensor(image))
        mean, spread = moments[:, :4], (moments[:, 4:].clamp(-30, 20) / 2).exp()
        self.write(
            "vae",
            {"image": image, "noise": noise, "decode_latent_scaled": latent},
            {
                "moments": moments, "mean": mean, "std": spread,
                "latent_scaled": self.scale * (mean + spread * torch.tensor(noise)),
                "decoded": plain.decode(self.first, config, torch.tensor(latent) / self.scale),
            },
        )  # fmt: skip

    def fused(self) -> None:
        config = self.config["cfw"]["ddconfig"]
        lq, latent = np.tanh(self.normal(1, 3, 8 * self.factor, 5 * self.factor)), self.normal(1, 4, 8, 5)
        moments, features = plain.encode(self.cfw, config, torch.tensor(lq))
        decoded = {
            f"decoded_w{weight:03d}": plain.decode(self.cfw, config, torch.tensor(latent), features, weight / 100)
            for weight in (0, 30, 100)
        }
        self.write("cfw", {"lq": lq, "latent": latent}, {"moments": moments, "fea_level1": features[1], **decoded})

    # sampling

    def noised(self, latent: Any, noise: Any, t: int) -> Tensor:
        return torch.tensor(self.shares[t] ** 0.5 * latent + (1 - self.shares[t]) ** 0.5 * noise, dtype=torch.float32)

    def whole(self, latent: Any, words: Tensor, against: Tensor | None = None, scale: float = 1.0) -> plain.Predict:
        def predict(x: Tensor, t: int) -> Tensor:
            made = self.predict(x, torch.tensor(latent), t, words)
            if against is None:
                return made
            without = self.predict(x, torch.tensor(latent), t, against)
            return without + scale * (made - without)

        return predict

    def tiled(self, latent: Any, words: Tensor, against: Tensor | None = None, scale: float = 1.0) -> plain.Predict:
        """Guided in each tile, as the original does it."""
        places = plain.windows(*latent.shape[2:], self.tile, self.tile - self.overlap)

        def predict(x: Tensor, t: int) -> Tensor:
            parts = []
            for top, bottom, left, right in places:
                part = np.s_[..., top:bottom, left:right]
                parts.append(self.whole(latent[part], words, against, scale)(x[part], t))
            return plain.merged(parts, places, x.shape, plain.bell(self.tile))

        return predict

    def prompts(self) -> dict[str, Any]:
        ids = self.random.integers(0, 88, (2, self.config["text"]["context_length"]))
        told = {"context": self.empty(), "context_pos": self.context(ids[0].tolist())}
        return {**told, "context_neg": self.context(ids[1].tolist())}

    def schedules(self) -> None:
        made: dict[str, Any] = {f"base_{name}": table for name, table in plain.tables(self.betas).items()}
        for count in self.schedule["table_steps"]:
            kept = plain.spaced(count, len(self.betas))
            made[f"s{count}_timesteps"] = np.array(kept)
            tables = plain.tables(plain.respaced(self.shares, kept))
            made |= {f"s{count}_{name}": table for name, table in tables.items()}
            uniform, shares, before = self.uniform(count)
            made |= {f"ddim{count}_timesteps": uniform, f"ddim{count}_alphas": shares}
            made |= {f"ddim{count}_alphas_prev": before, f"ddim{count}_sqrt_one_minus_alphas": (1 - shares) ** 0.5}
            made |= {f"ddim{count}_eta{eta}_sigmas": self.sigmas(shares, before, eta) for eta in (0, 1)}
        self.write("schedules", {}, made)

    def uniform(self, count: int) -> tuple[Any, Any, Any]:
        levels = np.arange(0, len(self.betas), len(self.betas) // count)
        shares = self.shares[levels]
        return levels, shares, np.array([shares[0], *shares[:-1]])

    @staticmethod
    def sigmas(shares: Any, before: Any, eta: float) -> Any:
        return eta * np.sqrt((1 - before) / (1 - shares)) * np.sqrt(1 - shares / before)

    def sample(self) -> None:
        shape, told = (1, 4, 12, 8), self.prompts()
        latent, empty, t = self.normal(*shape), told["context"], 500  # which is no kept step
        last = len(self.betas) - 1
        inputs = {**told, "latent": latent, "start_t": t, "guided_scale": 2.5, "long_latent": self.normal(*shape)}
        outputs: dict[str, Any] = {"timesteps": np.array(self.kept), "context": empty}

        def through(
            case: str, x: Tensor, predict: plain.Predict, count: int, of: int | None = None
        ) -> tuple[Tensor, Tensor]:
            inputs[f"{case}_step_noise"] = self.normal(count, *x.shape)
            kept = plain.spaced(of or self.steps, len(self.betas))
            states = [step[2] for step in plain.ddpm(
                x, kept, self.shares, self.kind, predict, inputs[f"{case}_step_noise"]
            )]  # fmt: skip
            return torch.stack(states), states[-1]

        for case, when in (("noised", last), ("start", t)):
            noise = inputs[f"{case}_noise"] = self.normal(*shape)
            outputs[f"{case}_x_T"] = x = self.noised(latent, noise, when)
            count = len([step for step in self.kept if step <= when])
            states, out = through(case, x, self.whole(latent, empty), count)
            outputs |= {f"{case}_steps": states, f"{case}_out": out}
        for case, predict, items, of in (
            ("pure", self.whole(latent, empty), 1, self.steps),
            ("guided", self.whole(latent, told["context_pos"], told["context_neg"], 2.5), 1, self.steps),
            ("long", self.whole(inputs["long_latent"], empty), 1, 6),
        ):
            x = inputs[f"{case}_x_T"] = self.normal(items, *shape[1:])
            outputs[f"{case}_out"] = through(case, torch.tensor(x), predict, of, of)[1]
        inputs["batch_latent"] = both = self.normal(2, 4, 8, 20)
        x = inputs["batch_x_T"] = self.normal(2, 4, 8, 20)
        words = torch.cat([empty, told["context_pos"]])
        outputs["batch_out"] = through("batch", torch.tensor(x), self.whole(both, words), self.steps)[1]
        self.write("sample", inputs, outputs)

    def canvas(self) -> None:
        told, last = self.prompts(), len(self.betas) - 1
        inputs = {**told, "guided_scale": 1.8}
        outputs: dict[str, Any] = {"timesteps": np.array(self.kept), "tile_weights": plain.bell(self.tile)}
        sizes = {"tall": (self.tile + 16, self.tile), "grid": (self.tile + 4, self.tile + 8)}
        for case, size in sizes.items():
            latent, noise, fields = (self.normal(*many, 1, 4, *size) for many in ((), (), (self.steps,)))
            inputs |= {f"{case}_latent": latent, f"{case}_noise": noise, f"{case}_step_noise": fields}
            outputs[f"{case}_x_T"] = x = self.noised(latent, noise, last)

            def made(predict: plain.Predict, x: Tensor = x, fields: Any = fields) -> list[tuple[Tensor, ...]]:
                return list(plain.ddpm(x, self.kept, self.shares, self.kind, predict, fields))

            places = plain.windows(*size, self.tile, self.tile - self.overlap)
            steps = made(self.tiled(latent, told["context"]))
            outputs |= {
                f"{case}_windows": np.array(places), f"{case}_first_x0": steps[0][0],
                f"{case}_first_mean": steps[0][1], f"{case}_out": steps[-1][2],
                f"{case}_steps": torch.stack([step[2] for step in steps]),
            }  # fmt: skip
            # Three at a time; a group ends with its column.
            column = len({top for top, *_ in places})
            groups = [min(3, column - at) for _ in range(len(places) // column) for at in range(0, column, 3)]
            outputs |= {f"{case}_windows_per_forward_bs3": np.array(groups), f"{case}_out_bs3": steps[-1][2]}
            if case == "tall":
                guided = made(self.tiled(latent, told["context_pos"], told["context_neg"], 1.8))
                outputs[f"{case}_guided_out"] = guided[-1][2]
                outputs[f"{case}_untiled_out"] = made(self.whole(latent, told["context"]))[-1][2]
        self.write("canvas", inputs, outputs)

    def ddim(self) -> None:
        told, shape, last = self.prompts(), (1, 4, 8, 12), len(self.betas) - 1
        empty, against = told["context"], told["context_neg"]
        levels, shares, before = self.uniform(self.steps)
        latent, noise, wide = self.normal(*shape), self.normal(*shape), self.normal(1, 4, self.tile, self.tile + 8)
        inputs = {
            **told, "latent": latent, "noise": noise, "guided_scale": 3.0, "uniform_scale": 1.5, "eta_value": 0.4,
            "eta_scale": 2.0, "eta_step_noise": self.normal(self.steps, *shape), "canvas_latent": wide,
            "canvas_x_T": self.normal(*wide.shape),
        }  # fmt: skip
        sigmas = self.sigmas(shares, before, 0.4)
        x, still = self.noised(latent, noise, last), np.zeros(self.steps)
        outputs: dict[str, Any] = {
            "net_timesteps": np.array(self.kept), "table_timesteps": levels, "table_alphas": shares,
            "table_alphas_prev": before, "eta_sigmas": sigmas, "x_T": x,
        }  # fmt: skip

        def through(x: Tensor, predict: plain.Predict, told: Any = self.kept, spread: Any = still, noises: Any = None):
            steps = list(plain.ddim(x, list(told), shares, before, spread, self.kind, predict, noises))
            return steps[-1][1], torch.stack([clean for clean, _ in steps])

        outputs["plain_out"], outputs["plain_pred_x0"] = through(x, self.whole(latent, empty))
        outputs["guided_out"], outputs["guided_pred_x0"] = through(x, self.whole(latent, empty, against, 3.0))
        outputs["scale1_pos_out"] = through(x, self.whole(latent, told["context_pos"]))[0]
        made = through(x, self.whole(latent, empty, against, 1.5), levels[: self.steps])
        outputs["uniform_guided_out"], outputs["uniform_guided_pred_x0"] = made
        fields = inputs["eta_step_noise"]
        outputs["eta_out"] = through(x, self.whole(latent, empty, against, 2.0), self.kept, sigmas, fields)[0]
        start = torch.tensor(inputs["canvas_x_T"])
        outputs["canvas_plain_out"] = through(start, self.tiled(wide, empty))[0]
        outputs["canvas_guided_out"] = through(start, self.tiled(wide, empty, against, 3.0))[0]
        self.write("ddim", inputs, outputs)

    def face(self) -> None:
        empty = self.empty()
        inputs: dict[str, Any] = {"context": empty}
        outputs: dict[str, Any] = {"timesteps": np.array(self.kept)}
        for case, batch, rate, iterations, within in (
            ("b1", 1, 0.1, 4, (2, 1000)), ("b2", 2, 0.5, 3, (1, 3)), ("script", 1, 0.5, 10, (10, 1000)),
        ):  # fmt: skip
            shape = (batch, 4, 8, 12)
            latent, there, x = (self.normal(*shape) for _ in range(3))
            fields = self.normal(self.steps, *shape)

            def pull(clean: Tensor, index: int, there: Any = there, of: Any = (batch, rate, iterations, within)):
                items, step, times, (low, high) = of
                for _ in range(times if low <= index <= high else 0):
                    clean = clean - step * 2 * (clean - torch.tensor(there)) / items
                return clean

            steps = plain.ddpm(
                torch.tensor(x), self.kept, self.shares, self.kind, self.whole(latent, empty), fields, pull
            )
            inputs |= {f"{case}_latent": latent, f"{case}_ref": there, f"{case}_x_T": x, f"{case}_step_noise": fields}
            inputs |= {f"{case}_lr": rate, f"{case}_iters": iterations, f"{case}_range": np.array(within)}
            outputs[f"{case}_out"] = list(steps)[-1][2]
        self.write("face", inputs, outputs)

    def loss(self) -> None:
        lq, gt, noise = (self.normal(2, 4, 8, 12) for _ in range(3))
        t, words = np.array([7, 640]), torch.cat([self.empty(), self.empty()])
        signal, spread = (np.sqrt(share)[:, None, None, None] for share in (self.shares[t], 1 - self.shares[t]))
        noisy, target = signal * gt + spread * noise, signal * noise - spread * gt if self.kind == "v" else noise
        x = torch.tensor(noisy, dtype=torch.float32)
        maps = plain.encoder(self.weights, self.config["structcond"], torch.tensor(lq), torch.tensor(t))
        made = plain.unet(self.weights, self.config["unet"], x, torch.tensor(t), words, maps)
        inputs = {"latent_lq": lq, "latent_gt": gt, "noise": noise, "t": t, "context": words}
        error = ((made - torch.tensor(target)) ** 2).mean()
        self.write("loss", inputs, {"x_noisy": x, "target": target, "prediction": made, "loss": error})

    # pictures

    @staticmethod
    def adain(content: Any, style: Any) -> Any:
        def told(x: Any) -> tuple[Any, Any]:
            return x.mean((2, 3), keepdims=True), np.sqrt(x.var((2, 3), ddof=1, keepdims=True) + 1e-5)

        (mean, spread), (wanted, wide) = told(content.astype(np.float64)), told(style.astype(np.float64))
        return (content - mean) / spread * wide + wanted

    @staticmethod
    def blurred(x: Any, radius: int) -> Any:
        padded = np.pad(x, ((0, 0), (0, 0), (radius, radius), (radius, radius)), mode="edge").astype(np.float64)
        height, width = x.shape[2:]
        made = np.zeros(x.shape)
        for row, of_row in enumerate((1, 2, 1)):
            for column, of_column in enumerate((1, 2, 1)):
                top, left = row * radius, column * radius
                made += of_row * of_column / 16 * padded[:, :, top : top + height, left : left + width]
        return made

    def low(self, x: Any) -> Any:
        for radius in (1, 2, 4, 8, 16):
            x = self.blurred(x, radius)
        return x

    @staticmethod
    def cut(x: Any) -> Any:
        """0..1 to bytes."""
        return (np.clip(x, 0, 1).astype(np.float32) * np.float32(255)).astype(np.uint8)

    def color(self) -> None:
        content, style = (0.8 * np.tanh(self.normal(1, 3, 20, 30)) for _ in range(2))
        eight = self.random.integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
        small = [(one / np.float32(255)).transpose(2, 0, 1)[None] for one in eight]
        wavelet = content - self.low(content) + self.low(style)
        back = small[0] - self.low(small[0]) + self.low(small[1])
        mean, spread = content.mean((2, 3), keepdims=True), content.var((2, 3), ddof=1, keepdims=True)
        self.write(
            "color",
            {"content": content, "style": style, "u8_content": eight[0], "u8_style": eight[1]},
            {
                "content_mean": mean, "content_std": np.sqrt(spread + 1e-5), "adain": self.adain(content, style),
                "content_low": self.low(content), "content_high": content - self.low(content), "wavelet": wavelet,
                "content_blur_r2": self.blurred(content, 2),
                "u8_adain": self.cut(self.adain(*small))[0].transpose(1, 2, 0),
                "u8_wavelet": self.cut(back)[0].transpose(1, 2, 0),
            },
        )  # fmt: skip

    @staticmethod
    def prepared(small: Any, scale: float) -> tuple[Tensor, tuple[int, int]]:
        """(1, 3, h, w) in -1..1, enlarged and padded as the tile scripts do, and its size before the padding."""
        size = tuple(int(side * scale) for side in small.shape[2:])
        large = functional.interpolate(torch.tensor(small), size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
        if size[0] % 32 or size[1] % 32:
            below, right = ((side // 32 + 1) * 32 - side for side in size)
            large = functional.pad(large, (0, right, 0, below), mode="reflect")
        return large, size

    def bytes(self) -> None:
        x, levels = 1.2 * np.tanh(self.normal(1, 3, 9, 7)), np.arange(256)
        ramp = levels.astype(np.float32) / 255 * 2 - 1
        eight = self.random.integers(0, 256, (11, 7, 3)).astype(np.uint8)
        small = ((eight.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
        scale = max(64 / 7, 3.0)
        padded, size = self.prepared(small, scale)
        self.write(
            "bytes",
            {"x": x, "lr_u8": eight, "prep_input_size": 64, "prep_upscale": 3.0},
            {
                "bytes": self.cut((x + 1) / 2).transpose(0, 2, 3, 1), "ramp": ramp,
                "ramp_bytes": self.cut((ramp + 1) / 2), "lr_float": small, "prep_scale": scale,
                "prep_resized_hw": np.array(size), "prep_padded": padded,
                "prep_pad_hw": np.array(padded.shape[2:]) - np.array(size),
            },
        )  # fmt: skip

    def split(self) -> None:
        cases = [(70, 33, 20, 7), (12, 50, 16, 9), (40, 40, 40, 40), (9, 9, 10, 3), (31, 64, 8, 8)]
        made: dict[str, Any] = {f"pos{at}": np.array(plain.windows(*case)) for at, case in enumerate(cases)}
        places = plain.windows(33, 45, 20, 7)
        patches, image = self.normal(len(places), 3, 20, 20), self.normal(1, 3, 33, 45)
        parts = [torch.tensor(patch) for patch in patches]
        made |= {"merge_pos": np.array(places), "merge_weight": plain.bell(20)}
        made["merge_gaussian"] = plain.merged(parts, places, image.shape, plain.bell(20))
        made["merge_plain"] = plain.merged(parts, places, image.shape, np.ones((20, 20)))
        made["sf2_pos"] = 2 * np.array(plain.windows(27, 41, 12, 5))
        inputs = {"cases": np.array(cases), "merge_size_stride": np.array([20, 7]), "merge_image": image}
        inputs |= {"merge_patches": patches, "sf2_size_stride_sf": np.array([12, 5, 2])}
        self.write("split", inputs, made)

    def pipeline(self) -> None:
        scale, weight, config, grid = 2.75, 0.35, self.config["cfw"]["ddconfig"], self.factor
        eight = self.random.integers(0, 256, (31, 43, 3)).astype(np.uint8)
        small = (eight.astype(np.float32) / 255 * 2 - 1).transpose(2, 0, 1)[None]
        large, size = self.prepared(small, scale)
        shape = (1, 4, large.shape[2] // grid, large.shape[3] // grid)
        posterior, start, fields = self.normal(*shape), self.normal(*shape), self.normal(self.steps, *shape)
        moments, features = plain.encode(self.cfw, config, large)
        latent = self.scale * (moments[:, :4] + (moments[:, 4:] / 2).exp() * torch.tensor(posterior))
        x = self.noised(latent.numpy(), start, len(self.betas) - 1)
        predict = self.tiled(latent.numpy(), self.empty())
        sampled = list(plain.ddpm(x, self.kept, self.shares, self.kind, predict, fields))[-1][2]
        decoded = plain.decode(self.cfw, config, sampled / self.scale, features, weight)
        fixed = decoded.numpy() - self.low(decoded.numpy()) + self.low(large.numpy())
        out = self.cut((fixed + 1) / 2)[0].transpose(1, 2, 0)[: int(31 * scale), : int(43 * scale)]
        inputs = {"lr_u8": eight, "input_size": 64, "upscale": scale, "dec_w": weight}
        inputs |= {"colorfix": "wavelet", "posterior_noise": posterior, "x_T_noise": start, "step_noise": fields}
        outputs = {"latent": latent, "sampled": sampled, "decoded_crop": decoded[..., :16, :16], "out_u8": out}
        assert out.shape[:2] == size
        self.write("pipeline", inputs, outputs)

    # what pictures are made bad by: the operations are the product's

    def operations(self) -> None:
        image = self.random.random((2, 3, 20, 24)).astype(np.float32)
        x = torch.tensor(image)
        narrow = degrade.blur_kernel(9, 1.1, 0.7, 0.4, shape="generalized", beta=0.8)
        meta = [
            {"array": "kernel0", "type": "generalized_aniso", "size": 9, "sigma_x": 1.1, "sigma_y": 0.7, "theta": 0.4,
             "beta": 0.8},
            {"array": "filter_single", "kernel": "kernel0"},
            {"array": "filter_pair", "kernels": ["kernel0", "kernel0"]}, {"array": "jpeg_out_q50", "quality": 50},
            {"array": "usm_out", "weight": 0.7, "radius": 21, "threshold": 5},
            {"array": "resize_area_60", "scale_factor": 0.6},
        ]  # fmt: skip
        kernels = narrow.expand(2, *narrow.shape)
        quiet = {name: np.zeros(2) for name in ("gauss_sigma", "gauss_gray", "poisson_scale", "poisson_gray")}
        noise = {
            **quiet, "noise_image": image,
            "gauss_z_gray": self.normal(20, 24), "gauss_z_color": self.normal(2, 3, 20, 24),
            "poisson_counts_gray": np.zeros((2, 1, 20, 24), np.float32),
            "poisson_counts_color": np.zeros((2, 3, 20, 24), np.float32),
        }  # fmt: skip
        self.write(
            "degradation_ops",
            {**noise, "meta_json": json.dumps(meta), "image": image, "usm_image": image[:1], "jpeg_image": image,
             "jpeg_quality": np.array([20.0, 80.0])},
            {
                "kernel0": narrow, "filter_single": degrade.filtered(x, kernels), "gauss_out": image,
                "filter_pair": degrade.filtered(x, kernels), "usm_out": degrade.sharpened(x[:1], 0.7, 21, 5),
                "jpeg_factor": np.array([2.5, 0.4]), "jpeg_out": degrade.jpeg(x, [20.0, 80.0]),
                "jpeg_out_q50": degrade.jpeg(x[:1], [50]),
                "resize_area_60": degrade.resized(x[:1], "area", factor=0.6),
            },
        )  # fmt: skip

    def degradation(self) -> None:
        """Half the size, odd sides, no sharpening, and the degraded picture as small as it is."""
        ranges = {
            "gaussian_noise_prob": 0.7, "noise_range": [2, 9],
            "poisson_scale_range": [0.1, 1.0], "gray_noise_prob": 0.3,
            "second_blur_prob": 0.4, "gaussian_noise_prob2": 0.2, "noise_range2": [1, 5], "gray_noise_prob2": 0.5,
            "poisson_scale_range2": [0.2, 0.6], "gt_size": 30, "no_degradation_prob": 0.0, "sf": 2, "use_usm": False,
            "resize_lq": False,
        }  # fmt: skip
        clean = self.random.random((1, 3, 47, 51)).astype(np.float32)
        kernels = {"p_kernel1": (7, 0.9), "p_kernel2": (5, 0.6), "p_sinc": (9, 1.0)}
        inputs = {name: degrade.blur_kernel(size, sigma, sigma, 0.0)[None] for name, (size, sigma) in kernels.items()}
        x = torch.tensor(clean)
        trace: list[Any] = [["random.choices", "down"], ["random.uniform", 0.83], ["random.choice", "bilinear"]]
        x = degrade.filtered(x, inputs["p_kernel1"])
        x = functional.interpolate(x, scale_factor=0.83, mode="bilinear", align_corners=False)
        x = self.gaussian(x, trace, inputs, 0, 0.25, (2, 9))
        x = self.jpeg(x, trace, inputs, 3, 74.0)
        trace += [["random.random", 0.9], ["random.choices", "up"], ["random.uniform", 1.1], ["random.choice", "area"]]
        size = (int(47 / 2 * 1.1), int(51 / 2 * 1.1))  # 25 and 28; of whole halves it were 25 and 27
        x = functional.interpolate(x, size=size, mode="area")
        x = self.gaussian(x, trace, inputs, 4, 0.1, (1, 5))
        trace += [["random.random", 0.7]]
        x = self.jpeg(x, trace, inputs, 7, 88.0)
        trace += [["random.choice", "bicubic"], ["random.randint", 3], ["random.randint", 5], ["random.random", 0.5]]
        x = functional.interpolate(x, size=(23, 25), mode="bicubic", align_corners=False)
        x = degrade.filtered(x, inputs["p_sinc"]).clamp(0, 1)[..., 3:18, 5:20]
        told = {"settings_json": json.dumps(ranges), "p_trace_json": json.dumps(trace), "p_gt": clean}
        outputs = {"p_gt_out": clean[..., 6:36, 10:40] * 2 - 1, "p_lq_out": (x * 2 - 1).clamp(-1, 1)}
        self.write("degradation_full", {**inputs, **told}, outputs)

    def gaussian(self, x: Tensor, trace: Any, inputs: Any, at: int, level: float, within: tuple[int, int]) -> Tensor:
        field = self.normal(*x.shape)
        for number, (source, value) in enumerate(
            (("torch.rand", np.array([level])), ("torch.rand", np.array([0.99])), ("torch.randn", field)), start=at
        ):
            inputs[f"p_draw{number}"] = value.astype(np.float32)
            trace.append([source, f"p_draw{number}"])
        trace.insert(len(trace) - 3, ["random.random", 0.1])
        sigma = level * (within[1] - within[0]) + within[0]
        return (x + sigma / 255 * torch.tensor(field)).clamp(0, 1)

    @staticmethod
    def jpeg(x: Tensor, trace: Any, inputs: Any, at: int, quality: float) -> Tensor:
        inputs[f"p_draw{at}"] = np.array([quality], np.float32)
        trace.append(["tensor.uniform", f"p_draw{at}"])
        return degrade.jpeg(x, [quality])

    def envelope(self) -> None:
        kept = dict(list(self.weights.items())[:3])
        kept["extra.view"] = torch.arange(12.0).reshape(3, 4).T[1:]
        kept["extra.half"], kept["extra.count"] = torch.ones(2).half(), torch.tensor(7)
        envelope(self.place / "envelope.ckpt", kept)
        self.write("envelope_expect", {}, kept)


@pytest.fixture(scope="module")
def script():
    with scripts.opened("stablesr") as module:
        yield module


@pytest.mark.parametrize("config", [VELOCITY, NOISE], ids=["velocity", "noise"])
def test_every_array_of_another_folder_agrees(tmp_path, script, capsys, config):
    with torch.inference_mode():
        Recorder(tmp_path, config).all()
    cases = json.loads((tmp_path / "manifest.json").read_text())["cases"]
    assert {case["name"].partition("/")[0] for case in cases} == {group.__name__ for group in script.GROUPS}
    code = script.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"{len(cases)} of {len(cases)} cases agree", said
    assert code == 0
