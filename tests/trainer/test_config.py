import difflib
import inspect
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline import WrongCall, augment
from trainer.config import Augmentation, Branch, Config, keys, load_config
from trainer.sources import presets, studies


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file and gives its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def problem(source: str, *changes: str) -> str:
    """The one line that a wrong configuration is answered with."""
    with pytest.raises(WrongCall) as told:
        load_config(source, changes)
    assert "\n" not in str(told.value)
    assert told.value.exit_status == 2
    return str(told.value)


# Presets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name):
    assert load_config(name) == load_config(name, [])
    assert load_config(name, ["seed=5"]).seed == 5


def test_the_presets_are_named_where_a_name_is_neither_one_nor_a_file(tmp_path):
    assert {"paper", "quick"} <= set(presets())
    for name in ("papper", str(tmp_path), str(tmp_path / "no.yaml")):
        assert problem(name) == (
            f"{name}: neither a file nor a preset; the presets are {', '.join(presets())}; "
            f"the studies, for crossval, are {', '.join(studies())}"
        )


def test_the_preset_paper_has_the_papers_values():
    """Li et al. (2023), section 3 and Eq. 1; those it does not give are those of the sources it names."""
    paper = load_config("paper")
    assert paper.data.size == (512, 480)
    assert (paper.network.name, paper.network.widths) == ("unet", (64, 128, 256, 512, 1024))
    assert paper.discriminators.widths == (64, 128, 256, 512)
    assert paper.discriminators.strides == (2, 2, 2, 2, 2)
    assert paper.objective.alpha == (1, 0.1, 0.1, 0.1)
    assert paper.objective.beta == (0.05, 0.05, 0.05, 0.05)
    assert paper.objective.truth == "stage"
    assert paper.optimizer.generator_rate == paper.optimizer.discriminator_rate == 1e-4
    assert (paper.optimizer.schedule, paper.optimizer.warmup_steps) == ("constant", 0)
    assert (paper.training.epochs, paper.training.batch, paper.training.accumulation) == (100, 4, 1)
    assert paper.training.precision == "fp32"
    assert not any(paper.augmentation.model_dump().values())


def test_the_preset_quick_keeps_the_papers_method_and_is_smaller():
    paper, quick = load_config("paper").flat(), load_config("quick").flat()
    changed = {key for key in paper if paper[key] != quick[key]}
    assert changed == {
        *(f"augmentation.{kind}" for kind in ("flip", "rotation", "scale", "shift", "brightness", "contrast")),
        "data.size",
        "discriminators.strides",
        "discriminators.widths",
        "network.widths",
        "optimizer.generator_rate",
        "optimizer.schedule",
        "training.batch",
        "training.channels_last",
        "training.epochs",
        "training.precision",
    }


@pytest.mark.parametrize("name", ["quick", "demo"])
def test_presets_with_published_results_vary_scans_as_they_did_then(name):
    kinds = {kind: largest for kind, largest in load_config(name).augmentation.model_dump().items() if largest}
    then = {"flip": 0.5, "rotation": 15, "scale": 0.1, "shift": 0.05, "brightness": 0.1, "contrast": 0.2}
    assert kinds == then


def test_every_kind_of_augmentation_can_be_configured():
    parameters = inspect.signature(augment).parameters.values()
    assert list(Augmentation.model_fields) == [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


# Changes ------------------------------------------------------------------------------------------------------------


def test_later_changes_win_over_earlier_ones_and_all_over_the_file(file):
    source = file("data: {fold: 3, readers: 2}\nseed: 4\n")
    config = load_config(source, ["data.fold=4", "seed=1", "data.fold=5", "training.epochs=2"])
    assert (config.data.fold, config.data.readers, config.seed, config.training.epochs) == (5, 2, 1, 2)
    assert load_config(source).data.fold == 3


def test_a_file_changes_nothing_that_it_does_not_name(file):
    config = load_config(file("optimizer:\n  warmup_steps: 7\n"))
    assert config == Config().replace(optimizer__warmup_steps=7)
    assert config.optimizer.generator_rate == 1e-4


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n", "null\n"])
def test_an_empty_file_is_the_default(file, text):
    assert load_config(file(text)) == Config()


def test_a_change_below_an_empty_branch_of_a_file_counts(file):
    assert load_config(file("data:\n"), ["data.fold=2"]).data.fold == 2


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001"])
def test_a_number_may_be_written_in_any_way(file, text):
    assert load_config("quick", [f"optimizer.generator_rate={text}"]).optimizer.generator_rate == 1e-4
    assert load_config(file(f"optimizer: {{generator_rate: {text}}}")).optimizer.generator_rate == 1e-4
    assert load_config(file(f"objective: {{beta: [{text}, 0, 1, 1e1]}}")).objective.beta == (1e-4, 0, 1, 10)


@pytest.mark.parametrize("text", ["512x480", "[512, 480]", "[512,480]"])
def test_a_size_may_be_written_as_people_do(file, text):
    assert load_config("quick", [f"data.size={text}"]).data.size == (512, 480)
    assert load_config(file(f"data: {{size: {text}}}")).data.size == (512, 480)


def test_values_keep_equal_signs_colons_and_spaces():
    uri = "s3://bucket/a=b/c d"
    assert load_config("quick", [f"data.uri={uri}"]).data.uri == uri


# What is wrong is named ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("training.epoch=3", "training.epochs"),
        ("epochs=3", "training.epochs"),
        ("trainning.epochs=3", "training.epochs"),
        ("data.sizes=[64, 64]", "data.size"),
        ("optimiser.generator_rate=1e-4", "optimizer.generator_rate"),
        ("objective.betas=[1]", "objective.beta"),
        ("sed=3", "seed"),
        ("data.fold.of=3", None),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(file, change, nearest):
    key, _, value = change.partition("=")
    branches = key.split(".")
    tree = value
    for name in reversed(branches):
        tree = f"{{{name}: {tree}}}"
    for line in (problem("quick", change), problem(file(tree))):
        if nearest is None:
            assert "data.fold={'of': 3}: input should be a valid integer" in line
        else:
            assert f"there is no key {key}; the nearest is {nearest}" in line


@given(st.sampled_from(keys()), st.data())
def test_a_key_with_a_letter_too_many_is_never_taken_for_another(key, data):
    place = data.draw(st.integers(0, len(key)))
    wrong = f"{key[:place]}x{key[place:]}"
    line = problem("quick", f"{wrong}=1")
    nearest = line.rpartition(" ")[2]
    assert f"there is no key {wrong}; the nearest is " in line
    similarity = [difflib.SequenceMatcher(None, valid, wrong).ratio() for valid in (nearest, key)]
    assert similarity[0] >= similarity[1]


WRONG_VALUES = [
    ("training.epochs=many", "training.epochs='many': input should be a valid integer"),
    ("training.epochs=2.5", "training.epochs=2.5: input should be a valid integer"),
    ("training.epochs=yes", "training.epochs=True: input should not be a truth value"),
    ("training.epochs=", "training.epochs=None: input should be a valid integer"),
    ("training.epochs=[3]", "training.epochs=[3]: input should be a valid integer"),
    ("training.epochs=0", "training.epochs=0: input should be greater than or equal to 1"),
    ("training.batch=-4", "training.batch=-4: input should be greater than or equal to 1"),
    ("training.precision=fp16", "training.precision='fp16': input should be 'fp32', 'tf32', 'bf16' or 'auto'"),
    ("training.generator_zero=4", "training.generator_zero=4: input should be 0, 1, 2 or 3"),
    ("training.generator_zero=true", "training.generator_zero=True: input should not be a truth value"),
    ("training.channels_last=3", "training.channels_last=3: input should be a valid boolean"),
    ("optimizer.generator_rate=0", "optimizer.generator_rate=0: input should be greater than 0"),
    ("optimizer.generator_rate=.inf", "optimizer.generator_rate=inf: input should be a finite number"),
    ("optimizer.generator_rate=.nan", "optimizer.generator_rate=nan: input should be a finite number"),
    ("optimizer.generator_rate=on", "optimizer.generator_rate=True: input should not be a truth value"),
    ("augmentation.flip=1.5", "augmentation.flip=1.5: input should be less than or equal to 1"),
    ("augmentation.scale=1", "augmentation.scale=1: input should be less than 1"),
    ("augmentation.elastic=0.2", "augmentation.elastic=0.2: input should be less than or equal to 0.1"),
    ("augmentation.rotation=270", "augmentation.rotation=270: input should be less than or equal to 180"),
    ("objective.alpha=[1, 1, 1]", "objective.alpha=[1, 1, 1]: field required"),
    ("objective.alpha=[1, 1, 1, -1]", "objective.alpha=-1: input should be greater than or equal to 0"),
    ("network.widths=[64]", "network.widths=[64]: tuple should have at least 2 items"),
    ("data.size=512", "data.size=512: input should be a valid tuple"),
    ("data.size=512x", "data.size='': input should be a valid integer"),
    ("data.size=-1x512", "data.size='-1': input should be greater than or equal to 1"),
    ("data.size=[true, 512]", "data.size=[True, 512]: input should not be a truth value"),
    ("data.fold=0", "data.fold=0: input should be greater than or equal to 1"),
    ("data.uri=5", "data.uri=5: input should be a valid string"),
    ("data.uri=[a,5]", "data.uri=['a', 5]: input should be a valid string"),
    ("data.weights=[1,0]", "data.weights=0: input should be greater than 0"),
    ("folds=[1, 0]", "folds=0: input should be greater than or equal to 1"),
    ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
    ("training=5", "training=5: input should be a valid dictionary"),
]


@pytest.mark.parametrize(("change", "answer"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_its_key(file, change, answer):
    assert problem("quick", change).startswith(f"quick: {answer}")
    key, _, value = change.partition("=")
    tree = value
    for name in reversed(key.split(".")):
        tree = f"{{{name}: {tree}}}"
    source = file(tree)
    assert problem(source).startswith(f"{source}: {answer}")


def test_a_wrong_value_is_answered_with_what_the_key_is_for():
    assert problem("quick", "data.readers=0").endswith(
        "(Threads of each process that fetch and decode samples ahead of the training.)"
    )


@pytest.mark.parametrize("change", ["training.epochs", "", "training.epochs:3"])
def test_a_change_without_an_equal_sign_is_named(change):
    assert problem("quick", change) == f"{change!r} is no key=value; write for example training.epochs=20"


@pytest.mark.parametrize("change", ["seed=[1", "data.uri={", "output='x", "seed=a: b: c"])
def test_a_change_that_is_no_yaml_is_named(change):
    key, _, value = change.partition("=")
    assert problem("quick", change) == f"{key}: {value!r} cannot be read as a value"


@pytest.mark.parametrize(
    ("text", "line"), [("data: [", 1), ("seed: 1\ndata: {fold: 2\n", 3), ("data:\n  fold: 2\n bad\n", 3), ("\tx: 1", 1)]
)
def test_a_broken_file_is_named_with_the_line(file, text, line):
    source = file(text)
    assert problem(source) == f"{source}: not readable as YAML, line {line}"


@pytest.mark.parametrize("text", ["- seed: 1\n", "[]", "5", "0", "false", "paper", '""'])
def test_a_file_that_holds_no_map_is_named(file, text):
    source = file(text)
    assert problem(source) == f"{source}: holds no configuration, which is a map of keys to values"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"seed: \xe4", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"])
def test_a_file_that_is_no_text_is_named(file, content):
    source = file(content)
    assert problem(source).startswith(f"{source}: not readable as ")


@pytest.mark.parametrize("text", ["1: 2", "true: 1", "data: {1: 2}", "foo: {}", "foo: null"])
def test_a_file_with_odd_keys_is_named(file, text):
    assert "there is no key " in problem(file(text))


def test_nothing_in_a_file_is_executed(file, tmp_path):
    source = file(f"seed: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    assert problem(source) == f"{source}: not readable as YAML, line 1"
    assert not (tmp_path / "made").exists()


# The tree -----------------------------------------------------------------------------------------------------------


def test_a_configuration_cannot_be_changed():
    config = load_config("quick")
    for branch, name, value in ((config, "seed", 1), (config.data, "fold", 2), (config.training, "new", 3)):
        with pytest.raises(ValidationError, match=r"frozen|no field"):
            setattr(branch, name, value)
    changed = config.replace(data__fold=2, seed=1)
    assert (changed.data.fold, changed.seed, config.data.fold, config.seed) == (2, 1, 1, 0)
    assert changed.replace(data__fold=1, seed=0) == config
    assert hash(config) == hash(load_config("quick"))


@pytest.mark.parametrize("name", presets())
def test_its_flat_form_gives_the_same_configuration_back(name, file):
    config = load_config(name)
    assert list(config.flat()) == keys()
    assert load_config("quick", [f"{key}={json.dumps(value)}" for key, value in config.flat().items()]) == config
    assert load_config(file(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_every_field_has_a_description_and_every_branch_too():
    def described(branch: type[Branch], prefix: str = ""):
        assert branch.__doc__
        for name, field in branch.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Branch):
                yield from described(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, f"{prefix}{name}"
                assert field.description.endswith(".")
                yield f"{prefix}{name}"

    assert list(described(Config)) == keys()
