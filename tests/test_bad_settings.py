"""Wrong settings, wherever they are written: one screen that names the key and the remedy, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from workbench import Pair, assert_told, make_pair, segshift


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "data")


Command = Callable[[Pair], Sequence[str | Path]]


def _yaml(pair: Pair, text: str, name: str = "run.yaml") -> Path:
    path = pair.root / name
    path.write_text(text, encoding="utf-8")
    return path


def _set(*sets: str) -> Command:
    return lambda p: p.adapt(*sets)


def _config(text: str, *more: str) -> Command:
    return lambda p: ["adapt", _yaml(p, text), *p.data(), "--out", p.run, *more]


def _data(text: str) -> Command:
    return lambda p: [
        "adapt", "--data", _yaml(p, text, "data.yaml"), "--method", "advent", "--classes", p.classes, "--out", p.run
    ]  # fmt: skip


def _domain(text: str) -> Command:
    """A data.yaml whose source has further keys."""
    return lambda p: _data(f"source: {{root: '{p.source}', {text}}}\ntarget: {{root: '{p.target}'}}\n")(p)


STAGES = "stages: [{name: one, method: source_only, steps: 1}]\n"
LAUGHS = "a0: &a0 []\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join(9 * [f'*a{i}'])}]\n" for i in range(20))

# Settings that cannot be: (the command, words that the message must hold).
SETTINGS: dict[str, tuple[Command, tuple[str, ...]]] = {
    "unknown key": (_set("bach_size=2"), ("'bach_size'", "did you mean 'batch_size'?", "to do")),
    "unknown key far from any": (_set("zzzz=2"), ("'zzzz'", "known:", "batch_size")),
    "unknown key of a group": (_set("source_augment.flp=true"), ("source_augment.flp", "'flip'")),
    "unknown key of a method": (_set("advent.adversarial_wight=1"), ("advent", "'adversarial_weight'")),
    "unknown key of a method's optimiser": (_set("advent.optimizer.learning=1"), ("optimizer.learning", "known: ")),
    "unknown option of the network": (_set("net.options.widht=8"), ("widht", "'width'", "deeplab_lite", "to do")),
    "unknown key in run.yaml": (_config("sed: 1\n" + STAGES), ("run.yaml", "'sed'", "'seed'")),
    "unknown key of a stage in run.yaml": (
        _config("stages: [{name: one, method: source_only, stps: 1}]"),
        ("run.yaml", "stps", "'steps'"),
    ),
    "unknown key in data.yaml": (_data("sorce: {root: x}"), ("data.yaml", "'sorce'", "'source'")),
    "unknown key of a domain": (_domain("layuot: gta5"), ("data.yaml", "source.layuot", "'layout'")),
    "unknown layout": (_domain("layout: gtav"), ("source.layout", "'gtav'", "'gta5'")),
    "unknown class in a class_map": (_domain("class_map: {7: raod}"), ("class_map", "'source'", "raod", "'road'")),
    "name as key of a class_map": (_domain("class_map: {asphalt: road}"), ("class_map", "'asphalt'", "layout")),
    "colour that is none in a class_map": (
        _domain("class_map: {'300,1,1': road}"),
        ("class_map", "300,1,1", "not a colour"),
    ),
    "class_map that is no map": (_domain("class_map: 5"), ("source.class_map", "found 5")),
    "unknown split": (_domain("split: trian"), ("'source'", "split: trian", "images/trian")),
    "list file missing": (_domain("list: nowhere.txt"), ("nowhere.txt", "does not exist")),
    "domain that is text": (_data("source: 5"), ("data.yaml", "source", "5")),
    "unknown method": (
        lambda p: ["adapt", *p.data(), "--method", "advnt", "--out", p.run],
        ("'advnt'", "did you mean 'advent'?"),
    ),
    "unknown method in run.yaml": (
        _config("stages: [{name: one, method: advnt, steps: 1}]"),
        ("one", "'advnt'", "did you mean 'advent'?"),
    ),
    "unknown recipe": (
        lambda p: ["adapt", *p.data(), "--recipe", "cpu/advnt", "--out", p.run],
        ("'cpu/advnt'", "'cpu/advent'"),
    ),
    "unknown network": (_set("net.name=deeplab_light"), ("'deeplab_light'", "did you mean 'deeplab_lite'?")),
    "unknown device": (lambda p: [*p.adapt(), "--device", "gpu"], ("'gpu'", "auto, cpu, cuda")),
    "device that is not there": (lambda p: [*p.adapt(), "--device", "cuda:99"], ("'cuda:99'", "torch sees")),
    "unsupported device": (lambda p: [*p.adapt(), "--device", "meta"], ("'meta'", "auto, cpu, cuda")),
    "unknown weights": (_set("net.options.weights=imagnet"), ("imagnet", "imagenet or none")),
    "option of the wrong type": (_set("net.options.width=wide"), ("deeplab_lite", "to do")),
    "checkpoint without layout": (_set("net.checkpoint=x.pth"), ("net.checkpoint", "layout", "to do")),
    "checkpoint without layout, and a stage that changes an option": (
        _set("net.checkpoint=x.pth", "source_only.net={options: {width: 8}}"),
        ("net.checkpoint", "layout", "to do"),
    ),
    "checkpoint missing": (
        _set("net.checkpoint=x.pth", "net.layout=efficientnet_lite0"),
        ("x.pth", "No such file", "to do"),
    ),
    "layout of a checkpoint unknown": (
        lambda p: p.adapt(f"net.checkpoint={p.image('source')}", "net.layout=advnt"),
        ("'advnt'", "advent"),
    ),
    "checkpoint that is an image": (
        lambda p: p.adapt(f"net.checkpoint={p.image('source')}", "net.layout=efficientnet_lite0"),
        ("000.png", "to do"),
    ),
    "number that is text": (_set("advent.steps=many"), ("steps", "'many'", "to do")),
    "number below its range": (_set("batch_size=0"), ("batch_size", "found 0")),
    "negative workers": (_set("workers=-1"), ("workers", "found -1")),
    "unknown precision": (_set("precision=fp64"), ("precision", "'fp64'", "bf16")),
    "negative learning rate": (_set("advent.optimizer.lr=-1"), ("optimizer.lr", "found -1")),
    "size too small": (_set("size=[8, 8]"), ("size", "8x8", "32")),
    "size with one side": (_set("size=[64]"), ("size", "to do")),
    "size in words": (_set("size=large"), ("size", "'large'", "auto")),
    "crop too small for the discriminator": (_set("target_augment.crop=[16, 16]"), ("target_augment", "16", "32")),
    "scale upside down": (_set("source_augment.scale=[2, 1]"), ("source_augment", "scale", "low")),
    "not finite": (_set("clip=.inf"), ("clip", "finite")),
    "test scale of zero": (_set("evaluation.scales=[0]"), ("evaluation.scales", "above 0")),
    "--set without value": (_set("seed"), ("--set seed", "KEY=VALUE")),
    "--set without key": (_set("=1"), ("--set =1", "KEY=VALUE")),
    "--set of a whole stage": (_set("advent=5"), ("--set advent=5", "advent.steps=500")),
    "--set through a value": (_set("batch_size.x=5"), ("--set batch_size.x=5", "single value")),
    "--set that is no YAML": (_set("size=[1"), ("--set size=[1", "YAML")),
    "--set of the stages": (_set("stages=5"), ("stages", "5")),
    "run.yaml missing": (lambda p: ["adapt", p.root / "no.yaml", "--out", p.run], ("no.yaml", "does not exist")),
    "run.yaml that is a folder": (lambda p: ["adapt", p.source, "--out", p.run], ("source", "cannot be read")),
    "run.yaml that is an image": (lambda p: ["adapt", p.image("source"), "--out", p.run], ("000.png",)),
    "run.yaml that is no YAML": (_config("stages: [\nx: {"), ("run.yaml", "not YAML", "to do")),
    "run.yaml that holds itself": (_config("net: &x {options: *x}\n" + STAGES), ("run.yaml", "aliases", "to do")),
    "run.yaml whose aliases multiply": (_config(LAUGHS + STAGES), ("run.yaml", "more than 100000 values")),
    "run.yaml that is nested too deeply": (_config("seed: " + 5000 * "["), ("run.yaml", "nested too deeply")),
    "--set that holds itself": (_set("net=&x {options: *x}"), ("--set net", "aliases")),
    "run.yaml with a value that its tag does not allow": (
        _config("cache: !!bool maybe"),
        ("run.yaml", "not YAML", "tag"),
    ),
    "run.yaml with an impossible date": (_config("seed: 2020-13-45"), ("run.yaml", "not YAML")),
    "run.yaml that is a list": (_config("- a\n- b\n"), ("run.yaml", "holds a list", "key: value")),
    "run.yaml with a key that is no text": (_config("5: 6\n" + STAGES), ("run.yaml", "5")),
    "run.yaml without stages": (_config("seed: 1\n"), ("no stages", "--recipe")),
    "run.yaml without stages but a control": (
        _config("control: a\n", "--no-control"),
        ("control", "no training stage"),
    ),
    "stages that are a number": (_config("stages: 5", "--set", "one.steps=3"), ("run.yaml", "stages", "5")),
    "stages of numbers": (_config("stages: [5]", "--set", "one.steps=3"), ("run.yaml", "stages.0", "5")),
    "stage without a name": (_config("control: a\nstages: [{steps: 1}]", "--no-control"), ("stages.0.name", "missing")),
    "stage with steps missing": (
        _config("stages: [{name: one, method: advent}]"),
        ("'one'", "steps must be at least 1"),
    ),
    "two stages of one name": (
        _config("stages: [{name: a, method: advent, steps: 1}, {name: a, method: advent, steps: 1}]"),
        ("'a'", "two"),
    ),
    "stage that starts from none": (
        _config("stages: [{name: a, method: advent, steps: 1, init: b}]"),
        ("'a'", "init 'b'", "no earlier training stage"),
    ),
    "control that is no stage": (_config("control: b\n" + STAGES), ("control 'b' is no training stage", "known: one")),
    "no data": (lambda p: ["adapt", "--method", "advent", "--out", p.run], ("no classes is given", "--classes")),
    "no target": (
        lambda p: ["adapt", "--source", p.source, "--classes", p.classes, "--out", p.run],
        ("no target", "--target"),
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(pair: Pair, case: str) -> None:
    command, words = SETTINGS[case]
    assert_told(segshift(*command(pair)), *words)
    assert not pair.run.exists(), "written before the settings were looked at"


def test_many_wrong_settings_fit_on_a_screen(pair: Pair) -> None:
    sets = [f"unknown_{i}=1" for i in range(60)]
    assert_told(segshift(*pair.adapt(*sets)), "unknown_0", "to do")
