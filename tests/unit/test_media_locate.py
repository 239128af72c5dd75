"""Which file is taken as a transcript's recording, and which names are refused."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from align_client.media.errors import MediaError
from align_client.media.locate import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, find_media

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from align_client.chat.document import Media


@dataclass(frozen=True)
class Header:
    """What `@Media` says, as the document gives it."""

    name: str
    kind: str = "audio"
    flags: tuple[str, ...] = ()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "talk.cha").touch()
    return folder


def find(corpus: Path, media: Header | None, media_dirs: Sequence[Path] = ()) -> Path:
    said: Media | None = media  # type: ignore[assignment]  # the same attributes
    return find_media(corpus / "talk.cha", said, media_dirs)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"sound")
    return path


def test_without_a_header_the_recording_is_named_like_the_transcript(corpus: Path) -> None:
    recording = put(corpus / "talk.flac")
    assert find(corpus, None) == recording


@pytest.mark.parametrize("extension", [*AUDIO_EXTENSIONS, *VIDEO_EXTENSIONS])
def test_every_known_extension_is_tried(corpus: Path, extension: str) -> None:
    recording = put(corpus / f"interview{extension}")
    put(corpus / "interview.txt")
    assert find(corpus, Header("interview")) == recording


@pytest.mark.parametrize("extension", ["WAV", "Mp3", "MOV"])
def test_the_case_of_the_extension_does_not_matter(corpus: Path, extension: str) -> None:
    recording = put(corpus / f"interview.{extension}")
    assert find(corpus, Header("interview")) == recording
    assert find(corpus, Header(f"interview.{extension.swapcase()}")) == recording


def test_the_case_of_the_name_does(corpus: Path) -> None:
    put(corpus / "Interview.wav")
    with pytest.raises(MediaError, match="no recording of this name"):
        find(corpus, Header("interview"))


def test_sound_is_preferred_to_video_and_wav_to_mp3(corpus: Path) -> None:
    for extension in ("mp4", "mp3", "wav"):
        put(corpus / f"talk.{extension}")
    assert find(corpus, Header("talk", "video")).suffix == ".wav"
    (corpus / "talk.wav").unlink()
    assert find(corpus, Header("talk", "video")).suffix == ".mp3"


def test_a_name_with_an_extension_is_taken_by_the_letter(corpus: Path) -> None:
    put(corpus / "talk.wav")
    recording = put(corpus / "talk.mp3")
    assert find(corpus, Header("talk.mp3")) == recording
    with pytest.raises(MediaError):
        find(corpus, Header("talk.flac"))


def test_a_dot_in_a_name_is_not_an_extension(corpus: Path) -> None:
    recording = put(corpus / "session.1.wav")
    assert find(corpus, Header("session.1")) == recording


@pytest.mark.parametrize("name", ["a talk of two", "趙天恩.recording(1)", "Zoë", "данные"])
def test_names_with_spaces_and_of_any_script_are_found(corpus: Path, name: str) -> None:
    recording = put(corpus / f"{name}.wav")
    assert find(corpus, Header(name)) == recording


@pytest.mark.parametrize(("on_disk", "in_header"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_names_are_the_same(corpus: Path, on_disk: str, in_header: str) -> None:
    name = "éàü/ñandú"
    stored, said = (unicodedata.normalize("NFC" if form == "NFC" else "NFD", name) for form in (on_disk, in_header))
    recording = put(corpus / f"{stored}.wav")
    assert find(corpus, Header(said)) == recording


def test_the_transcripts_folder_comes_before_the_media_folders_in_their_order(corpus: Path, tmp_path: Path) -> None:
    second = put(tmp_path / "two" / "talk.wav")
    first = put(tmp_path / "one" / "talk.mp3")
    folders = [tmp_path / "absent", first.parent, second.parent]
    assert find(corpus, Header("talk"), folders) == first
    beside = put(corpus / "talk.mp4")
    assert find(corpus, Header("talk"), folders) == beside


@pytest.mark.parametrize("name", ["sub/talk", "sub\\talk", "./sub/talk.wav"])
def test_a_name_may_lead_into_a_sub_folder(corpus: Path, name: str) -> None:
    recording = put(corpus / "sub" / "talk.wav")
    assert find(corpus, Header(name)) == recording


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret", r"'\.\.'"),
        ("sub/../../secret", r"'\.\.'"),
        ("sub\\..\\..\\secret", r"'\.\.'"),
        ("..", r"'\.\.'"),
        ("/etc/secret", "absolute"),
        ("\\\\host\\share\\secret", "absolute"),
        ("C:\\secret", "absolute"),
        ("~/secret", "absolute"),
        ("https://example.org/secret.wav", "URL"),
        ("file:///secret.wav", "URL"),
        ("sec\0ret", "control character"),
        ("", "no name"),
        ("./", "no name"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(corpus: Path, name: str, said: str) -> None:
    put(corpus.parent / "secret.wav")
    with pytest.raises(MediaError, match=said):
        find(corpus, Header(name))


def test_a_link_out_of_the_allowed_folders_is_refused(corpus: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere" / "talk.wav")
    (corpus / "talk.wav").symlink_to(outside)
    with pytest.raises(MediaError, match="leads out of the allowed folders"):
        find(corpus, Header("talk"))
    assert find(corpus, Header("talk"), [outside.parent]) == corpus / "talk.wav"


def test_a_sub_folder_that_is_a_link_out_is_refused(corpus: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere" / "talk.wav")
    (corpus / "sub").symlink_to(outside.parent)
    with pytest.raises(MediaError, match="leads out of the allowed folders"):
        find(corpus, Header("sub/talk"))


def test_a_link_inside_the_allowed_folders_is_followed(corpus: Path) -> None:
    put(corpus / "store" / "0001.wav")
    (corpus / "talk.wav").symlink_to("store/0001.wav")
    assert find(corpus, Header("talk")) == corpus / "talk.wav"


def test_a_transcripts_folder_that_is_itself_a_link_is_fine(corpus: Path, tmp_path: Path) -> None:
    put(corpus / "talk.wav")
    (tmp_path / "alias").symlink_to(corpus)
    assert find(tmp_path / "alias", Header("talk")) == tmp_path / "alias" / "talk.wav"


def test_a_link_to_nothing_says_so(corpus: Path) -> None:
    (corpus / "talk.wav").symlink_to("gone.wav")
    with pytest.raises(MediaError, match="broken link"):
        find(corpus, Header("talk"))


def test_a_link_to_itself_says_so(corpus: Path) -> None:
    (corpus / "talk.wav").symlink_to("talk.wav")
    with pytest.raises(MediaError, match="broken link"):
        find(corpus, Header("talk"))


def test_a_folder_or_a_fifo_is_not_a_recording(corpus: Path) -> None:
    (corpus / "talk.wav").mkdir()
    os.mkfifo(corpus / "other.wav")
    with pytest.raises(MediaError, match="is a folder"):
        find(corpus, Header("talk"))
    with pytest.raises(MediaError, match="not a regular file"):
        find(corpus, Header("other"))


def test_a_folder_of_the_name_does_not_hide_a_recording(corpus: Path) -> None:
    (corpus / "talk.wav").mkdir()
    recording = put(corpus / "talk.mp3")
    assert find(corpus, Header("talk")) == recording


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_recording_without_read_permission_says_so(corpus: Path) -> None:
    put(corpus / "talk.wav").chmod(0)
    with pytest.raises(MediaError, match="permission denied"):
        find(corpus, Header("talk"))


@pytest.mark.parametrize(
    ("mark", "said"), [("missing", "missing"), ("unlinked", "not linked"), ("notrans", "not trans")]
)
def test_what_the_header_says_of_an_absent_recording_is_told(corpus: Path, mark: str, said: str) -> None:
    for header in (Header("talk", "audio", (mark,)), Header("talk", mark)):
        with pytest.raises(MediaError, match=said):
            find(corpus, header)


def test_a_recording_marked_missing_that_is_there_is_used(corpus: Path) -> None:
    recording = put(corpus / "talk.wav")
    assert find(corpus, Header("talk", "audio", ("missing",))) == recording


def test_the_error_says_where_was_looked(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        find(corpus, Header("interview"), [tmp_path / "media"])
    assert caught.value.path == "interview"
    assert str(corpus) in caught.value.message
    assert str(tmp_path / "media") in caught.value.message
