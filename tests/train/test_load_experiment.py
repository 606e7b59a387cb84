import pytest

from tml_jax.train.config import ExperimentConfig, load_experiment


def test_the_shipped_experiments_load():
    assert isinstance(load_experiment("configs/inkling_tiny.py"), ExperimentConfig)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "There is no config"),
        ("x = 1\n", "defines no CONFIG"),
        ("CONFIG = 3\n", "defines no CONFIG"),
        ("CONFIG = (\n", "SyntaxError"),
        ("import nowhere_at_all\n", "ModuleNotFoundError"),
        ("from tml_jax.train.config import TrainConfig\nCONFIG = TrainConfig(stepz=1)\n", "stepz"),
    ],
)
def test_what_is_no_experiment_is_told(tmp_path, source, told):
    path = tmp_path / "experiment.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ValueError, match=told) as caught:
        load_experiment(str(path))
    assert str(path) in str(caught.value)
