"""How the emulated Raspberry Pi is made and kept; no emulator runs here."""

import shutil

import pytest

from tests.pi import root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, whose steps fetch nothing."""
    monkeypatch.setattr(root, "CACHE", tmp_path / "cache")

    def packages(work):
        work.mkdir(parents=True)
        return [work / "python3_3.11_arm64.deb"]

    def unpacked(made, _debs):
        (made / "root/usr/bin").mkdir(parents=True)
        (made / "root/usr/bin/python3").symlink_to("python3.11")
        return made / "root"

    monkeypatch.setattr(root, "_packages", packages)
    monkeypatch.setattr(root, "_unpacked", unpacked)
    monkeypatch.setattr(root, "_wheels", lambda *_: ["numpy 2.0.0"])
    monkeypatch.setattr(root, "_run", lambda *_, **__: None)
    return tmp_path / "cache"


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_what_is_made_is_found_again(cache, monkeypatch):
    """A whole root says what is in it, serves the next run as it is, and leaves no intermediate file."""
    made = root.build()
    monkeypatch.setattr(root, "_packages", interrupt)

    assert root.find() == root.build() == made
    assert (made / "contents").read_text() == "python3_3.11_arm64.deb\nnumpy 2.0.0\n"
    assert sorted(p.name for p in made.iterdir()) == ["contents", "root", "venv"]
    assert sorted(p.name for p in cache.iterdir()) == [made.name, "lock"]


@pytest.mark.parametrize("step", ["_packages", "_unpacked", "_virtual_environment", "_wheels", "_run"])
def test_an_interrupted_build_does_not_count(cache, monkeypatch, step):
    """Wherever a build is interrupted there is no root, and the next build makes a whole one from nothing."""
    with monkeypatch.context() as broken:
        broken.setattr(root, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            root.build()

        assert root.find() is None
    (cache / root.key()).mkdir(exist_ok=True)
    (cache / root.key() / "half-made").touch()

    assert root.build() == root.find()
    assert not (root.find() / "half-made").exists()


@pytest.mark.usefixtures("cache")
def test_a_root_serves_what_it_was_made_from(monkeypatch):
    """Another version of ONNX Runtime, of Debian or another place asks for another root, which replaces the old."""
    old = root.build()
    monkeypatch.setattr(root.metadata, "version", lambda _name: "99.0")

    assert root.find() is None
    assert root.build() != old
    assert not old.exists()


def test_a_step_that_fails_says_why():
    """A command's last words are in the error, and so is the command."""
    with pytest.raises(root.BuildError, match="no-such-file"):
        root._run(["ls", "/no-such-file"])


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_a_damaged_package_is_an_error(tmp_path):
    """A package that cannot be read ends the build; nothing of it counts as unpacked."""
    (tmp_path / "broken.deb").write_bytes(b"not a package")

    with pytest.raises(root.BuildError, match="ended with code"):
        root._extract(tmp_path / "broken.deb", tmp_path)


@pytest.mark.parametrize(
    ("machine", "distribution", "reason"),
    [("aarch64", "debian", "Linux on x86_64"), ("x86_64", "fedora", "on Debian only")],
)
def test_a_machine_that_cannot_have_one_is_told_why(monkeypatch, capsys, machine, distribution, reason):
    """On another processor or distribution the build ends well and says what is missing."""
    monkeypatch.setattr(root.platform, "machine", lambda: machine)
    monkeypatch.setattr(root.platform, "freedesktop_os_release", lambda: {"ID": distribution})

    assert root.main() == 0
    assert reason in capsys.readouterr().out


@pytest.mark.usefixtures("cache")
def test_a_failed_download_is_said(monkeypatch, capsys):
    """Without the network the build fails and says what failed."""

    def refused(*_):
        raise root.BuildError("apt-get update ended with code 100")

    monkeypatch.setattr(root, "obstacle", lambda: "")
    monkeypatch.setattr(root, "_packages", refused)

    assert root.main() == 1
    assert "apt-get update ended with code 100" in capsys.readouterr().out
