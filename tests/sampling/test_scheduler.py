"""Our steps are diffusers' steps: the same numbers by name, one fresh process for each picture."""

import copy
import inspect
import logging
import math
from itertools import pairwise, product

import diffusers
import pytest
import torch

from enlarger.canvas.noise import SequentialNoise
from enlarger.errors import ModelError, SettingsError
from enlarger.sampling import names
from enlarger.sampling.scheduler import DiffusersSteps
from tests.engines import toy

SHAPE = (1, 4, 6, 7)
NAMES = tuple(names.SCHEDULERS)
NO_X0 = ("pndm", "euler-a", "heun")
SIGMAS = ("euler", "euler-a", "heun")


class Recorded:
    """Noise that was recorded before; counts what is asked."""

    def __init__(self, values):
        self.values = list(values)
        self.asked = 0

    def draw(self, shape):
        value = self.values[self.asked]
        assert value.shape == tuple(shape)
        self.asked += 1
        return value


def network(scaled, timestep):
    """Any answer that depends on all it sees."""
    return (0.7 * scaled + 0.1 * math.sin(timestep)).tanh() + 0.2 * scaled.roll(1, -1)


def drawing(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def combinations():
    for name in NAMES:
        for kind in toy.KINDS:
            for spacing in names.SPACINGS if names.SCHEDULERS[name].spacing else (None,):
                yield name, kind, spacing


def theirs(name, kind, steps, *, spacing=None, eta=0.0, strength=None, latent=None, seed=0, config=None):
    """The states that diffusers' own calls give, in the order in which its pipelines make them."""
    facts = names.SCHEDULERS[name]
    changes = dict(facts.changes) | ({"timestep_spacing": spacing} if spacing else {})
    converted = kind == "x0" and name in NO_X0
    config = config or toy.config("epsilon" if converted else kind)
    scheduler = getattr(diffusers, facts.kind).from_config(config, **changes)
    scheduler.set_timesteps(steps)
    generator, timesteps = drawing(seed), scheduler.timesteps
    state = torch.randn(SHAPE, generator=generator)
    if latent is None:
        state = state * scheduler.init_noise_sigma
    else:
        # StableDiffusionImg2ImgPipeline.get_timesteps and prepare_latents
        begin = max(steps - min(int(steps * strength), steps), 0)
        timesteps = timesteps[begin * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin * scheduler.order)
        state = scheduler.add_noise(latent, state, timesteps[:1])
    takes = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in (("eta", eta), ("generator", generator)) if key in takes}
    states = [state]
    for position, timestep in enumerate(timesteps):
        output = network(scheduler.scale_model_input(state, timestep), float(timestep))
        if converted:
            kept = scheduler.alphas_cumprod[int(timestep)]
            signal, sigma = kept.sqrt(), (1 - kept).sqrt()
            if name in SIGMAS:
                signal, sigma = 1.0, scheduler.sigmas[len(scheduler.timesteps) - len(timesteps) + position]
            output = (state - signal * output) / sigma
        state = scheduler.step(output, timestep, state, **options, return_dict=False)[0]
        states.append(state)
    return states


def ours(steps, noise, latent=None, adjust=None):
    state = steps.start(noise, SHAPE, latent)
    states = [state]
    for moment in steps.moments:
        output = network(steps.scale(state, moment), moment.timestep)
        state = steps.step(output, state, moment, noise, adjust)
        states.append(state)
    return states


def largest(one, other):
    assert len(one) == len(other)
    return max(float((mine - their).abs().max()) for mine, their in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "kind", "spacing"), list(combinations()))
def test_every_state_is_that_of_diffusers(name, kind, spacing):
    eta = 0.7 if name == "ddim" else 0.0
    steps = DiffusersSteps(toy.config(kind), 6, name=name, spacing=spacing, eta=eta)
    assert largest(ours(steps, SequentialNoise(5)), theirs(name, kind, 6, spacing=spacing, eta=eta, seed=5)) <= 1e-5


@pytest.mark.parametrize("strength", [1.0, 0.57, 0.34])
@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_steps_is_that_of_diffusers(name, strength):
    latent = torch.randn(SHAPE, generator=drawing(9))
    steps = DiffusersSteps(toy.config("v_prediction"), 9, name=name, strength=strength)
    expected = theirs(name, "v_prediction", 9, strength=strength, latent=latent)
    assert largest(ours(steps, SequentialNoise(0), latent), expected) <= 1e-6


def test_a_part_may_begin_at_a_timestep_that_comes_twice():
    """Karras sigmas rounded to timesteps: the first of two equal ones is not the second."""
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(toy.config(), use_karras_sigmas=True)
    scheduler.set_timesteps(100)
    timesteps = scheduler.timesteps.tolist()
    begin = next(index for index in range(50, 99) if timesteps[index - 1] > timesteps[index] == timesteps[index + 1])
    latent, strength = torch.randn(SHAPE, generator=drawing(9)), (100 - begin + 0.5) / 100
    steps = DiffusersSteps(toy.config(), 100, name="dpm++2m-karras", strength=strength)
    expected = theirs("dpm++2m-karras", "epsilon", 100, strength=strength, latent=latent)
    assert largest(ours(steps, SequentialNoise(0), latent), expected) <= 1e-6


@pytest.mark.parametrize("own", ["PNDMScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_without_a_name_the_models_own_scheduler_runs(own):
    config = toy.config("epsilon", own, timestep_spacing="trailing")
    steps = DiffusersSteps(config, 5)
    assert steps.name == names.find(own).name
    assert largest(ours(steps, SequentialNoise(0)), theirs(steps.name, "epsilon", 5, spacing="trailing")) <= 1e-6


def test_the_models_own_solver_keeps_its_order_and_sigmas():
    config = toy.config("epsilon", "DPMSolverMultistepScheduler", solver_order=3, use_karras_sigmas=True)
    own, second = DiffusersSteps(config, 12), DiffusersSteps(config, 12, name="dpm++2m")
    assert (own.name, second.name) == ("dpm++2m-karras", "dpm++2m")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    scheduler.set_timesteps(12)
    assert [moment.timestep for moment in own.moments] == scheduler.timesteps.tolist()
    assert largest(ours(second, SequentialNoise(0)), theirs("dpm++2m", "epsilon", 12)) <= 1e-6


def test_only_written_keys_go_over_to_another_scheduler():
    # PNDM's own default is leading, Euler's is linspace: diffusers' from_config keeps what stands in the file.
    steps = DiffusersSteps(toy.config("epsilon", "PNDMScheduler"), 4, name="euler")
    assert [moment.timestep for moment in steps.moments] == [999, 666, 333, 0]


@pytest.mark.parametrize(
    ("name", "steps", "strength", "calls"),
    [
        ("ddim", 50, 0.57, 28),
        ("ddim", 100, 0.29, 28),
        ("euler", 50, 1.0, 50),
        ("pndm", 10, None, 11),
        ("pndm", 10, 0.5, 6),
        ("heun", 10, None, 19),
        ("heun", 10, 0.5, 9),
        ("lcm", 4, None, 4),
        ("ddim", 4, 0.1, 1),
    ],
)
def test_the_network_is_called_as_often_as_by_diffusers(name, steps, strength, calls):
    made = DiffusersSteps(toy.config(), steps, name=name, strength=strength)
    assert len(made.moments) == calls
    assert made.raised == (strength == 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_moments_count_down_to_zero_and_tell_the_noise_in_the_state(name):
    steps = DiffusersSteps(toy.config(), 7, name=name)
    assert [moment.index for moment in steps.moments] == list(range(len(steps.moments)))[::-1]
    assert {moment.count for moment in steps.moments} == {len(steps.moments)}
    sigmas = [moment.sigma for moment in steps.moments]
    assert sigmas == sorted(sigmas, reverse=True)
    # Noised with a latent of zero, the state is that much noise.
    noise = torch.randn(SHAPE, generator=drawing())
    start = steps.start(Recorded([noise]), SHAPE, torch.zeros(SHAPE))
    torch.testing.assert_close(start, sigmas[0] * noise)


DRAWS = {"ddpm": 5, "euler-a": 5, "lcm": 4}


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_asked_of_the_source_alone_and_as_often_as_diffusers_draws(name):
    values = [torch.randn(SHAPE, generator=drawing(seed)) for seed in range(9)]
    noise, before = Recorded(values), torch.random.get_rng_state()
    ours(DiffusersSteps(toy.config(), 5, name=name), noise)
    assert noise.asked == 1 + DRAWS.get(name, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ddim_draws_once_a_step_if_it_has_an_eta():
    values = [torch.randn(SHAPE, generator=drawing(seed)) for seed in range(9)]
    noise = Recorded(values)
    ours(DiffusersSteps(toy.config(), 5, name="ddim", eta=0.5), noise)
    assert noise.asked == 6


@pytest.mark.parametrize("name", ["ddpm", "euler-a", "lcm"])
def test_recorded_noise_takes_the_place_of_drawn_noise(name):
    generator = drawing(3)
    recorded = Recorded([torch.randn(SHAPE, generator=generator) for _ in range(9)])
    one, other = (ours(DiffusersSteps(toy.config(), 5, name=name), noise) for noise in (recorded, SequentialNoise(3)))
    assert largest(one, other) == 0


@pytest.mark.parametrize("name", NAMES)
def test_processes_of_two_pictures_do_not_know_each_other(name):
    config = toy.config()
    kept = copy.deepcopy(config)
    alone = ours(DiffusersSteps(config, 5, name=name), SequentialNoise(1))
    one, other = DiffusersSteps(config, 5, name=name), DiffusersSteps(config, 5, name=name)
    noises = SequentialNoise(1), SequentialNoise(2)
    states = [one.start(noises[0], SHAPE), other.start(noises[1], SHAPE)]
    for moment in one.moments:
        for which, steps in enumerate((one, other)):
            output = network(steps.scale(states[which], moment), moment.timestep)
            states[which] = steps.step(output, states[which], moment, noises[which])
    assert torch.equal(states[0], alone[-1])
    assert not torch.equal(states[1], alone[-1])
    assert config == kept


def test_a_moment_out_of_order_is_an_error_and_not_a_wrong_picture():
    steps, noise = DiffusersSteps(toy.config(), 5, name="euler"), SequentialNoise(0)
    state = steps.start(noise, SHAPE)
    with pytest.raises(ValueError, match="step 1"):
        steps.step(state, state, steps.moments[1], noise)


# The clean estimate


@pytest.mark.parametrize(
    ("name", "kind"), [*product(["ddim", "ddpm", "euler"], toy.KINDS), *product(["euler-a"], toy.KINDS[:2])]
)
def test_the_clean_estimate_is_that_of_diffusers(name, kind):
    steps = DiffusersSteps(toy.config(kind), 4, name=name)
    facts = names.SCHEDULERS[name]
    scheduler = getattr(diffusers, facts.kind).from_config(toy.config(kind))
    scheduler.set_timesteps(4)
    noise, generator = SequentialNoise(0), drawing()
    state = steps.start(noise, SHAPE)
    torch.randn(SHAPE, generator=generator)
    for moment, timestep in zip(steps.moments, scheduler.timesteps, strict=True):
        output = network(steps.scale(state, moment), moment.timestep)
        scheduler.scale_model_input(state, timestep)
        expected = scheduler.step(output, timestep, state, generator=generator).pred_original_sample
        torch.testing.assert_close(steps.clean(output, state, moment), expected, rtol=1e-5, atol=1e-4)
        state = steps.step(output, state, moment, noise)


def dressed(clean, state, moment, name, kind):
    """The prediction of a kind for a clean estimate: state = signal * clean + sigma * noise."""
    signal = 1.0 if name in SIGMAS else math.sqrt(1 - moment.sigma**2)
    noise = (state - signal * clean) / moment.sigma
    alpha, beta = signal / math.hypot(signal, moment.sigma), moment.sigma / math.hypot(signal, moment.sigma)
    return {"x0": clean, "epsilon": noise, "v_prediction": alpha * noise - beta * clean}[kind]


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_three_predictions_stand_for_one_clean_estimate(name, kind):
    """State = signal * x0 + sigma * noise, and each kind of prediction made from x0 and noise gives x0 back."""
    steps = DiffusersSteps(toy.config(kind), 5, name=name)
    clean, noise = (torch.randn(SHAPE, generator=drawing(seed)) for seed in (1, 2))
    for moment in steps.moments:
        signal = 1.0 if name in SIGMAS else math.sqrt(1 - moment.sigma**2)
        state = signal * clean + moment.sigma * noise
        prediction = dressed(clean, state, moment, name, kind)
        torch.testing.assert_close(steps.clean(prediction, state, moment), clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_the_clean_estimate_is_a_change_of_the_prediction(name, kind):
    """A run whose estimates are adjusted equals one whose network itself speaks for the adjusted estimate."""
    seen = []

    def adjust(clean, moment):
        seen.append(moment)
        return 0.8 * clean + 0.1

    noise = SequentialNoise(4)
    steps = DiffusersSteps(toy.config(kind), 5, name=name)
    adjusted = ours(steps, noise, adjust=adjust)
    assert seen == list(steps.moments)

    noise, plain = SequentialNoise(4), DiffusersSteps(toy.config(kind), 5, name=name)
    state = plain.start(noise, SHAPE)
    for moment in plain.moments:
        output = network(plain.scale(state, moment), moment.timestep)
        clean = 0.8 * plain.clean(output, state, moment) + 0.1
        state = plain.step(dressed(clean, state, moment, name, kind), state, moment, noise)
    torch.testing.assert_close(adjusted[-1], state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_left_as_it_is_changes_nothing(name):
    plain, adjusted = (
        ours(DiffusersSteps(toy.config("v_prediction"), 5, name=name), SequentialNoise(4), adjust=adjust)
        for adjust in (None, lambda clean, moment: clean)
    )
    torch.testing.assert_close(plain[-1], adjusted[-1], rtol=1e-4, atol=1e-4)


# Against the closed form: clean values normal around 0.5 with deviation 0.3


CENTRE, DEVIATION = 0.5, 0.3


def gaussian_run(name, kind, steps, seed=0, shape=SHAPE, **options):
    """Start and end of a run with the exact denoiser, and the sigmas of its moments."""
    engine = toy.Toy(kind, DEVIATION)
    made = DiffusersSteps(toy.config(kind, set_alpha_to_one=True), steps, name=name, **options)
    record = toy.ToyConditioning(toy.Plane(torch.tensor(CENTRE)))
    noise = SequentialNoise(seed)
    start = state = made.start(noise, shape)
    for moment in made.moments:
        output = engine.predict(made.scale(state, moment), moment, record).conditional
        state = made.step(output, state, moment, noise)
    return start, state, made


def ratio(moment, name):
    """Noise over signal."""
    return moment.sigma if name in SIGMAS else moment.sigma / math.sqrt(1 - moment.sigma**2)


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_first_order_steps_follow_the_closed_form_exactly(name, kind):
    """With x = state / signal and D the exact denoiser, x' = D + (s' / s) (x - D): a product of known factors."""
    start, end, made = gaussian_run(name, kind, 7, spacing="leading")
    # DDIM's next timestep is 1000 // 7 lower, and so is Euler's but for the last.
    ratios = [ratio(moment, name) for moment in made.moments] + [0.0]
    factor = math.prod((DEVIATION**2 + here * after) / (DEVIATION**2 + here**2) for here, after in pairwise(ratios))
    signal = 1.0 if name == "euler" else math.sqrt(1 - made.moments[0].sigma ** 2)
    torch.testing.assert_close(end, CENTRE + factor * (start / signal - CENTRE), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize("name", ["pndm", "heun", "dpm++2m", "dpm++2m-karras", "unipc"])
def test_higher_order_steps_converge_to_the_probability_flow(name, kind):
    """The flow shrinks x - centre by sqrt((d^2 + s'^2) / (d^2 + s^2)) (Karras et al. 2022, eq. 1) down to the last
    moment; from there all of them jump to the denoiser's answer."""
    start, end, made = gaussian_run(name, kind, 60)
    first, last = (ratio(moment, name) for moment in (made.moments[0], made.moments[-1]))
    signal = 1.0 if name == "heun" else math.sqrt(1 - made.moments[0].sigma ** 2)
    factor = DEVIATION**2 / (math.hypot(DEVIATION, last) * math.hypot(DEVIATION, first))
    tolerance = 0.02 if name == "pndm" else 0.005  # PNDM's last steps are coarse
    torch.testing.assert_close(end, CENTRE + factor * (start / signal - CENTRE), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", toy.KINDS)
@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("euler-a", {}), ("ddim", {"eta": 1.0}), ("lcm", {})])
def test_ancestral_steps_have_the_mean_and_deviation_of_the_closed_form(name, kind, options):
    """With z = state / signal: z' = D + k (z - D) + u n, k = s'^2 / s^2 and u^2 = s'^2 (s^2 - s'^2) / s^2 (Ho et al.
    2020, eq. 6 and 7; Karras et al. 2022 for Euler a). LCM forgets z: k = 0, u = s' (Luo et al. 2023, algorithm 3)."""
    _, end, made = gaussian_run(name, kind, 12, shape=(1, 4, 150, 150), **options)
    ratios = [ratio(moment, name) for moment in made.moments] + [0.0]
    signal = 1.0 if name == "euler-a" else 1 / math.hypot(1, ratios[0])
    mean = -CENTRE
    variance = ratios[0] ** 2 if name == "euler-a" else 1 / signal**2
    for here, after in pairwise(ratios):
        keep, fresh = (0, after) if name == "lcm" else (after**2 / here**2, after * math.sqrt(1 - after**2 / here**2))
        trust = DEVIATION**2 / (DEVIATION**2 + here**2)
        factor = trust + keep * (1 - trust)
        mean, variance = factor * mean, factor**2 * variance + fresh**2
    assert float(end.mean()) == pytest.approx(CENTRE + mean, abs=0.01)
    assert float(end.std()) == pytest.approx(math.sqrt(variance), rel=0.02)


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "ddimm"}, "did you mean ddim"),
        ({"name": "euler", "eta": 0.3}, "euler has no eta"),
        ({"name": "lcm", "spacing": "trailing"}, "no spacing"),
        ({"name": "ddim", "spacing": "even"}, "leading, trailing, linspace"),
        ({"steps": 0}, "1 to 1000"),
        ({"steps": 1001}, "1 to 1000"),
        ({"name": "lcm", "steps": 51}, "lcm: 1 to 50"),
        ({"strength": 0.0}, "above 0"),
        ({"strength": 1.2}, "at most 1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, words):
    with pytest.raises(SettingsError, match=words) as caught:
        DiffusersSteps(toy.config(), **{"steps": 5, **options})
    assert "\n" not in str(caught.value)


def test_a_model_with_a_scheduler_that_is_not_ours_is_told_apart_from_a_wrong_option():
    with pytest.raises(ModelError, match=r"KDPM2DiscreteScheduler.*--scheduler"):
        DiffusersSteps(toy.config(name="KDPM2DiscreteScheduler"), 5)
    DiffusersSteps(toy.config(name="KDPM2DiscreteScheduler"), 5, name="euler")


def test_an_unknown_prediction_is_the_models_fault():
    with pytest.raises(ModelError, match="flow"):
        DiffusersSteps(toy.config("flow_prediction"), 5)


def test_the_engines_word_for_its_prediction_wins_over_the_configuration():
    steps = DiffusersSteps(toy.config("epsilon"), 5, name="ddim", prediction="v_prediction")
    assert largest(ours(steps, SequentialNoise(0)), theirs("ddim", "v_prediction", 5)) <= 1e-6


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ModelError, match=r"enlarger\[diffusers\]"):
        DiffusersSteps(toy.config(), 5)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_has_nothing_to_complain_of(name):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    diffusers.utils.logging.add_handler(handler)
    try:
        ours(DiffusersSteps(toy.config("epsilon", "PNDMScheduler", unknown_key=3), 3, name=name), SequentialNoise(0))
    finally:
        diffusers.utils.logging.remove_handler(handler)
    assert said == []
