"""Base models of one's own below the model root: added, described, kept apart and removed."""

import multiprocessing
import shutil
from uuid import uuid4

import pytest

from jobs.base_models import placing
from jobs.base_models.catalog import describe_model, identify_root, list_names
from jobs.base_models.publishing import add_folder, remove_model
from jobs.errors import InvalidUpload, ModelExists, ModelInUse, ModelProtected
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from sft.errors import ModelNotFound, ModelUnusable
from sft.models.loading import find_model
from tests.model_files import read_files, write_model, write_weights


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "somewhere" / "my base", shards=2)


def no_jobs():
    return []


def test_a_folder_anywhere_is_copied_and_described(settings, source):
    added = add_folder(source, "local/mine", settings)

    assert added.is_new
    assert added.model == describe_model("local/mine", settings)
    assert read_files(settings.model_root / "local/mine") == read_files(source)
    facts = {
        name: added.model[name] for name in ("architecture", "parameters", "dtype", "positions", "kind", "problem")
    }
    assert facts == {
        "architecture": "LlamaForCausalLM",
        "parameters": 2000,
        "dtype": "BF16",
        "positions": 512,
        "kind": "copy",
        "problem": None,
    }
    assert added.model["has_chat_template"]
    assert added.model["bytes"] == sum(map(len, read_files(source).values()))
    assert list_names(settings) == ["local/mine"]
    assert find_model("local/mine", settings.model_root) == settings.model_root / "local/mine"


def test_what_training_does_not_read_is_left_out_and_named(settings, source):
    (source / "pytorch_model.bin").write_bytes(b"pickled")
    write_weights(source / "consolidated.safetensors", "other", 10)  # beside the ones that the index names
    write_model(source / "checkpoint-500")
    (source / ".git").mkdir()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")

    added = add_folder(source, "local/mine", settings)

    assert added.left_out == (".git", "checkpoint-500", "consolidated.safetensors", "pytorch_model.bin")
    copied = read_files(settings.model_root / "local/mine")
    assert "additional_chat_templates/tools.jinja" in copied
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & {*copied}


def test_links_are_followed_to_weights_and_within_the_model_alone(settings, tmp_path, source):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "notes.txt").write_text("private")
    (source / "model-00002-of-00002.safetensors").rename(outside / "weights")
    (source / "model-00002-of-00002.safetensors").symlink_to(outside / "weights")
    (source / "additional_chat_templates").mkdir()
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates/tools.jinja").symlink_to("../chat_template.jinja")
    copied = add_folder(source, "local/mine", settings)
    assert copied.is_new
    assert read_files(settings.model_root / "local/mine") == read_files(source)

    for name in ("tokenizer_config.json", "additional_chat_templates/more.jinja", "model.safetensors", "config.json"):
        link = write_model(tmp_path / f"other {name.replace('/', ' ')}") / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(outside / "notes.txt")
        folder = link.parents[1] if "/" in name else link.parent
        with pytest.raises(InvalidUpload, match=rf"{name} is a link to .*notes.txt, which is not in the folder"):
            add_folder(folder, "local/other", settings)
    linked = write_model(tmp_path / "linked")
    (linked / "additional_chat_templates").symlink_to(outside, target_is_directory=True)
    with pytest.raises(InvalidUpload, match=r"additional_chat_templates/notes.txt is a link to"):
        add_folder(linked, "local/other", settings)
    assert list_names(settings) == ["local/mine"]


def test_a_link_in_the_model_root_reveals_nothing_of_what_the_service_can_read(settings, tmp_path):
    secret = tmp_path / "shadow.json"
    secret.write_text('{"architectures": ["SECRET"], "max_position_embeddings": 4711, "chat_template": "SECRET"}')
    folder = write_model(settings.model_root / "x/y")
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        found = describe_model("x/y", settings)
        assert f"x/y/{name} is a link that leaves the model root" in found["problem"]
        assert (found["architecture"], found["positions"], found["has_chat_template"]) == (None, None, False)
        assert "SECRET" not in str(found)
        with pytest.raises(ModelNotFound, match=r"leaves|outside"):
            find_model("x/y", settings.model_root)
        (folder / name).unlink()
        write_model(folder)
    assert describe_model("x/y", settings)["problem"] is None


def test_a_folder_in_an_allowed_root_is_referred_to(tmp_path, source):
    settings = Settings(home=tmp_path / "home", allowed_model_roots=(tmp_path / "somewhere",))
    added = add_folder(source, "local/mine", settings)

    assert added.model["kind"] == "link"
    assert added.model["path"] == str(source)
    assert (settings.model_root / "local/mine").resolve() == source
    assert list_names(settings) == ["local/mine"]
    assert find_model("local/mine", settings.model_root, settings.allowed_model_roots)

    remove_model("local/mine", settings, no_jobs, None, True)
    assert list_names(settings) == []
    assert (source / "config.json").is_file()


def test_copy_copies_also_from_an_allowed_root(tmp_path, source):
    settings = Settings(home=tmp_path / "home", allowed_model_roots=(tmp_path / "somewhere",))
    assert add_folder(source, "local/mine", settings, "copy").model["kind"] == "copy"


def test_a_link_from_nowhere_allowed_is_refused_and_leaves_nothing(settings, source):
    with pytest.raises(ModelUnusable, match=r"TUNEYARD_ALLOWED_MODEL_ROOTS.*--copy"):
        add_folder(source, "local/mine", settings, "link")
    assert list_names(settings) == []
    assert not (settings.model_root / "local").exists()


def test_a_link_that_was_allowed_once_is_listed_without_what_it_holds(tmp_path, source):
    allowed = Settings(home=tmp_path / "home", allowed_model_roots=(tmp_path / "somewhere",))
    add_folder(source, "local/mine", allowed)

    found = describe_model("local/mine", Settings(home=tmp_path / "home"))
    assert (found["architecture"], found["parameters"], found["bytes"]) == (None, None, 0)
    assert "leaves the model root" in found["problem"]


def test_adding_the_same_folder_again_changes_nothing_and_a_changed_one_is_another_model(settings, source):
    first = add_folder(source, "local/mine", settings)
    assert add_folder(source, "local/mine", settings) == (first.model, False, ())

    write_weights(source / "model-00001-of-00002.safetensors", "layer0.weight", 1001)
    with pytest.raises(ModelExists, match="local/mine"):
        add_folder(source, "local/mine", settings)
    assert describe_model("local/mine", settings) == first.model


def test_a_folder_in_the_model_root_has_the_name_that_it_has(settings):
    put = write_model(settings.model_root / "me/base")
    added = add_folder(put, "me/base", settings)
    assert (added.model["name"], added.is_new) == ("me/base", False)
    with pytest.raises(InvalidUpload, match="already, as me/base; use that name"):
        add_folder(put, "local/other", settings)
    assert list_names(settings) == ["me/base"]


def test_models_put_there_by_hand_are_listed_too(settings):
    write_model(settings.model_root / "gpt2")
    write_model(settings.model_root / "org/base", template=False)
    (settings.model_root / "org/empty").mkdir()
    write_model(settings.model_root / ".hidden/base")

    assert list_names(settings) == ["gpt2", "org/base"]
    found = describe_model("org/base", settings)
    assert (found["has_chat_template"], found["added_at"], found["owner"]) == (False, None, None)
    for name in ("org/none", "../home", "org/../gpt2", ".hidden/base", "/etc", "org/base/x", "gpt2\0", ""):
        with pytest.raises(ModelNotFound):
            describe_model(name, settings)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "model-00002-of-00002.safetensors"),
        (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"short"), "not a safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter"),
        (lambda folder: shutil.rmtree(folder), "not a folder"),
    ],
    ids=["no configuration", "missing shard", "broken shard", "no JSON", "adapter", "nothing"],
)
def test_what_is_no_base_model_is_refused_before_anything_is_copied(settings, source, spoil, told):
    spoil(source)
    with pytest.raises((InvalidUpload, ModelUnusable), match=told):
        add_folder(source, "local/mine", settings)
    assert read_files(settings.model_root) == {}


@pytest.mark.parametrize(
    "name", ["mine", "a/b/c", "../a", "a/..", ".a/b", "a/.b", "a b/c", "ä/b", "a/" + "b" * 97, "/a"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(settings, source, name):
    with pytest.raises(InvalidUpload, match="ORG/NAME"):
        add_folder(source, name, settings)


def test_a_model_is_not_removed_while_a_job_needs_it(settings, source):
    add_folder(source, "local/mine", settings)
    with pytest.raises(ModelInUse, match="job 17 and 1 more"):
        remove_model("local/mine", settings, lambda: ["17", "18"], None, True)

    answers = iter([[], ["19"]])  # submitted between the two looks
    with pytest.raises(ModelInUse, match="19"):
        remove_model("local/mine", settings, lambda: next(answers), None, True)
    assert read_files(settings.model_root / "local/mine") == read_files(source)

    remove_model("local/mine", settings, no_jobs, None, True)
    assert list_names(settings) == []
    assert [path for path in read_files(settings.model_root) if not path.endswith(".lock")] == []


def test_a_model_without_an_organisation_does_not_take_the_models_in_its_folder_along(settings, source):
    add_folder(source, "acme/mine", settings)
    shutil.copytree(source, settings.model_root / "acme", dirs_exist_ok=True)  # by hand, a folder too high
    assert list_names(settings) == ["acme"]
    with pytest.raises(ModelInUse, match="acme has other base models in its folder: acme/mine; delete them first"):
        remove_model("acme", settings, no_jobs, None, True)
    assert find_model("acme/mine", settings.model_root).is_dir()

    remove_model("acme/mine", settings, no_jobs, None, True)
    remove_model("acme", settings, no_jobs, None, True)
    assert list_names(settings) == []
    assert settings.model_root.is_dir()

    (settings.model_root / "acme").symlink_to(source)  # of a link only the link goes, whatever is in its folder
    write_model(source / "checkpoint-500")
    remove_model("acme", settings, no_jobs, None, True)
    assert (source / "checkpoint-500/config.json").is_file()


def test_only_the_key_that_added_a_model_and_admins_remove_it(settings, source):
    owner = uuid4()
    add_folder(source, "local/mine", settings, owner=owner)
    write_model(settings.model_root / "org/by-hand")
    for name, remover in (("local/mine", uuid4()), ("local/mine", None), ("org/by-hand", owner)):
        with pytest.raises(ModelProtected, match="admin"):
            remove_model(name, settings, no_jobs, remover, False)
    remove_model("local/mine", settings, no_jobs, owner, False)
    remove_model("org/by-hand", settings, no_jobs, uuid4(), True)


def test_a_model_that_is_removed_when_its_process_is_killed_is_gone(settings, source, monkeypatch):
    add_folder(source, "local/mine", settings)

    def die(_place):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(placing, "discard_folder", die)
        with pytest.raises(KeyboardInterrupt):
            remove_model("local/mine", settings, no_jobs, None, True)
    add_folder(source, "local/other", settings)
    assert list_names(settings) == ["local/other"]
    assert [*settings.model_root.glob(".removed-*")] == []


def test_a_copy_that_is_killed_leaves_no_model_and_the_next_one_cleans_up(settings, source):
    child = multiprocessing.get_context("spawn").Process(target=_copy_slowly, args=(source, settings))
    child.start()
    while not [*settings.model_root.glob("local/.*/config.json")] and child.is_alive():
        pass
    child.kill()
    child.join()

    assert list_names(settings) == []
    add_folder(source, "local/mine", settings)
    assert list_names(settings) == ["local/mine"]
    assert [path.name for path in (settings.model_root / "local").iterdir()] == ["mine"]


def _copy_slowly(source, settings):
    import time

    def clone(_source, target):
        target.write_bytes(b"")
        time.sleep(60 if target.name == "config.json" else 0)

    placing.clone_file = clone
    add_folder(source, "local/mine", settings)


def test_the_model_root_is_identified(tmp_path, settings):
    assert identify_root(settings) is None
    assert not settings.home.exists()
    made = identify_root(settings, make=True)
    assert made == identify_root(Settings(home=tmp_path / "home")) is not None
    assert made != identify_root(Settings(home=tmp_path / "other"), make=True)


def test_a_model_that_is_added_is_in_the_store(tmp_path, source):
    (tmp_path / "store").mkdir()
    settings = Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}")
    add_folder(source, "local/mine", settings)

    store = SharedStore.find(settings)
    kept = store.get("models", "local/mine")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    store.fetch("models", kept, fetched)
    assert read_files(fetched) == read_files(source)
