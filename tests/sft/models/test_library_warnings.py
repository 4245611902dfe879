"""What libraries warn of while a model is loaded reaches the job's warnings, once."""

import logging
import warnings
from pathlib import Path

import pytest

from sft.models.library_warnings import collecting_warnings


@pytest.mark.parametrize("name", ["transformers.modeling_utils", "peft.tuners.lora.model", "trl.trainer.sft_trainer"])
def test_a_librarys_warning_is_heard_once(name: str) -> None:
    with collecting_warnings() as heard:
        for _ in range(2):
            logging.getLogger(name).warning("Some weights of %s were not\ninitialized", "X")
        logging.getLogger(name).info("not this")
        logging.getLogger("elsewhere").warning("nor this")
        logging.getLogger(name).warning("nor XForCausalLM LOAD REPORT, which is told in words of ours")
    logging.getLogger(name).warning("nor what comes later")
    library = name.partition(".")[0]
    assert heard == [f"{library} warned while the model was loaded: Some weights of X were not initialized"]


def test_pythons_warnings_are_heard_and_filters_stay(tmp_path: Path) -> None:
    place = str(tmp_path / "peft" / "tuners.py")
    with collecting_warnings() as heard, pytest.raises(UserWarning):  # an error here, as pytest's filters have it
        warnings.warn_explicit("tied", UserWarning, place, 1)
    assert heard == []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown: list[str] = []
        warnings.showwarning = lambda message, *rest: shown.append(str(message))
        with collecting_warnings() as heard:
            warnings.warn_explicit("tied", UserWarning, place, 1)
            warnings.warn_explicit("soon gone", FutureWarning, place, 2)
            warnings.warn_explicit("mine", UserWarning, str(tmp_path / "mine.py"), 3)
    assert heard == ["peft warned while the model was loaded: tied"]
    assert shown == ["tied", "soon gone", "mine"]


def test_a_sound_model_is_loaded_without_a_warning(open_session) -> None:
    assert open_session().warnings == []


def test_a_warning_of_a_library_is_among_the_sessions(open_session, monkeypatch) -> None:
    from sft.training import session

    load = session.load_model

    def warn_and_load(*arguments):
        logging.getLogger("transformers.modeling_utils").warning("rope_parameters are odd")
        return load(*arguments)

    monkeypatch.setattr(session, "load_model", warn_and_load)
    assert open_session().warnings == ["transformers warned while the model was loaded: rope_parameters are odd"]
