"""Names of places that somebody who means harm would try, and some that are merely odd."""

from pathlib import Path

# What lies outside of every folder that may be read; the tests put it there.
SECRET_FOLDER = "outside"
SECRET_FILES = ("config.json", "adapter_config.json", "train.jsonl", "secret.json", "id_rsa")

_TARGETS = ("etc/passwd", f"{SECRET_FOLDER}", f"{SECRET_FOLDER}/train.jsonl", f"{SECRET_FOLDER}/secret.json")
_UPWARD = (
    "../", "../../", "../../../", "../../../../../../../../../../",
    "./../", "./.././../", "x/../../", "x/../../../", "org/model/../../../../", ".//..//..//", "..//../",
)  # fmt: skip
_DISGUISED = (
    "..\\..\\", "..\\/..\\/", "%2e%2e%2f%2e%2e%2f", "%2e%2e/%2e%2e/", "..%2f..%2f", "..%252f..%252f",
    "..%c0%af..%c0%af",
    "%c0%ae%c0%ae/%c0%ae%c0%ae/", "..%5c..%5c", "..%00/../", "..;/..;/", "....//....//", "..././..././",
    "\uff0e\uff0e/\uff0e\uff0e/", "..\u2215..\u2215", "..\u2044..\u2044", "..\uff0f..\uff0f", "\u2025/\u2025/",
    ".\u200b./.\u200b./", "..\u202e/../", "\u2024\u2024/", "..\u00a0/..\u00a0/", ".. /.. /", "..\t/..\t/",
)  # fmt: skip


def hostile_paths(state: Path) -> list[str]:
    """More than a hundred of them. `state`: the state folder, beside which SECRET_FOLDER lies."""
    outside = state.parent / SECRET_FOLDER
    climbing = [up + target for up in _UPWARD for target in _TARGETS]
    disguised = [up + target for up in _DISGUISED for target in _TARGETS[:2]]
    absolute = [
        "/", "//", "///etc/passwd", "/etc", "/etc/passwd", "/etc/shadow", "/root/.ssh/id_rsa", "/proc/self/environ",
        "/proc/self/cwd", "/proc/self/root/etc/passwd", "/proc/1/environ", "/dev/stdin", "/dev/fd/0", "/dev/zero",
        "/dev/random", "/sys/kernel", "/var/run/docker.sock", "/../etc/passwd", "/./etc/./passwd",
        str(outside), f"{outside}/", f"{outside}/train.jsonl", f"//{outside}", f"{state}/../{SECRET_FOLDER}",
        f"{state}/outputs/../../{SECRET_FOLDER}", f"{state}/models/../../{SECRET_FOLDER}",
        f"{state}/data/../../{SECRET_FOLDER}/train.jsonl", f"{state}x", f"{state}-evil/x",
        "C:\\Windows\\win.ini", "\\\\server\\share\\x", "\\\\?\\C:\\x", "//server/share",
    ]  # fmt: skip
    home = [
        "~",
        "~/",
        "~/.ssh/id_rsa",
        "~root",
        "~root/.bashrc",
        "$HOME",
        "${HOME}/.ssh",
        "%USERPROFILE%",
        "`id`",
        "$(id)",
    ]
    schemes = [
        f"file://{outside}", f"file://localhost{outside}/train.jsonl", f"file:{outside}", "file:///etc/passwd",
        f"FILE://{outside}", f"dvc://{outside}", f"local://{outside}", f"memory://{outside}", f"zip://{outside}/x.zip",
        f"hf://datasets/../../..{outside}", "http://127.0.0.1:9/x", "https://169.254.169.254/latest", "s3://bucket/x",
        "git+file:///etc", "ssh://-oProxyCommand=id/x", "ext::sh -c id", "data:text/plain,x", "jar:file:///x!/y",
        "models:", "models:/", "models://", "models:///", "models:/x", "models:/../1", "models:/x/..",
        "models:/x/../..",
        "models:/x/1/../../..", f"models:/x/1/{SECRET_FOLDER}", f"models:{outside}", f"models://host{outside}",
        "models:/x@..", "models:/m-../../etc", "models:/x/latest/../../../etc/passwd", "runs:/../../etc", "MODELS:/x/1",
        "mlflow-artifacts:/../../etc", "mlflow-artifacts://127.0.0.1:9/etc",
    ]  # fmt: skip
    links = [
        "link/secret.json",
        "link",
        "link/train.jsonl",
        "way/out",
        "linked.jsonl",
        "circle",
        "circle/x",
        "org/link",
    ]
    odd = [
        ".", "./", "..", "../", "...", " ", "  ..", ".. ", "-", "--", "-rf", "--upload-pack=id", "-oProxyCommand=id",
        "*", "?",
        "**/*", "[a-z]", "x\0y", "\0", "../\0", "config.json\0.safetensors", "a\nb", "a\r\nb", "../\n/etc",
        "\x1b[2J", "\u2028",
        "\u202etxt.exe", "x" * 256, "x" * 5000, "x/" * 3000, "../" * 1500 + "etc/passwd", "@", "@@", "a@",
        "@main", "a@..",
        "a@../..", "../a@main", "/etc@main", ".git@main", ".dvc@main", ".git/config@main", ".dvc/config@main",
        ".dvc/config.local@main", "x@--output=/tmp/x", "x@main:../../etc/passwd", "x@{upstream}", "x@HEAD^{/x}",
        "x@:/x",
        "CON", "NUL", "aux.txt", "x:y", "x|id", "x;id", "x&&id", "x>y", "'\"", "{{ 7*7 }}", "%s%n", "../../../{{x}}",
    ]  # fmt: skip
    return [*climbing, *disguised, *absolute, *home, *schemes, *links, *odd]


def plant(state: Path) -> Path:
    """Put the secrets beside the state folder, and links that lead to them into each root; returns their folder."""
    outside = state.parent / SECRET_FOLDER
    outside.mkdir()
    for name in SECRET_FILES:
        (outside / name).write_text('{"secret": "outside"}\n')
    for root in ("models", "outputs", "data"):
        folder = state / root
        (folder / "org").mkdir(parents=True)
        (folder / "link").symlink_to(outside)
        (folder / "org/link").symlink_to("../../../" + SECRET_FOLDER)
        (folder / "way").symlink_to(outside.parent)
        (folder / "linked.jsonl").symlink_to(outside / "train.jsonl")
        (folder / "circle").symlink_to("circle")
    return outside
