"""Transcripts with times become files that other programs read, and say the same there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exported as read
from align_client.export import SUFFIXES, tiers
from align_client.export.run import Exported, export
from align_client.export.tiers import Interval
from align_client.files import InputError, Job, jobs
from exported import Cue, Said

if TYPE_CHECKING:
    from collections.abc import Callable

    from align_client.report import Note

    Export = Callable[..., tuple[Exported, Path]]

HEAD = "@UTF8\n@Begin\n@Languages:\teng\n@Media:\ttalk, audio\n"
TWO = (
    "*CHI:\t<I want> [/] &-um ice+cream [= food] .\n\t•1000_2500•\n"
    "%mor:\tx\n%wor:\tI •1000_1100• want •1100_1400• um •1500_1600• icecream •1700_2400• .\n"
    "*MOT:\tyou do ? •2600_3005•\n%wor:\tyou •2650_2801• do •2801_3000• ?\n"
)


@pytest.fixture
def exporter(tmp_path: Path) -> Export:
    """Exports the utterances given; a bullet is written • there."""

    def run(body: str, form: str, head: str = HEAD, name: str = "talk", newline: str = "\n") -> tuple[Exported, Path]:
        source = tmp_path / f"{name}.cha"
        source.write_bytes((head + body + "@End\n").replace("•", "\x15").replace("\n", newline).encode())
        target = tmp_path / f"{name}{SUFFIXES[form]}"
        return export(Job(source, target), form), target

    return run


def whys(notes: list[Note]) -> list[str]:
    return [f"{note.line}:{note.column}: {note.why}" for note in notes]


class TestTextGrid:
    def test_each_speaker_has_a_tier_of_utterances_and_one_of_words(self, exporter: Export) -> None:
        done, path = exporter(TWO, "textgrid")
        assert done.is_complete
        assert read.textgrid(path) == {
            "CHI - utterances": [Said("<I want> [/] &-um ice+cream [= food] .", 1000, 2500)],
            "CHI - words": [
                Said("I", 1000, 1100),
                Said("want", 1100, 1400),
                Said("um", 1500, 1600),
                Said("icecream", 1700, 2400),
            ],
            "MOT - utterances": [Said("you do ?", 2600, 3005)],
            "MOT - words": [Said("you", 2650, 2801), Said("do", 2801, 3000)],
        }

    def test_an_overlap_is_cut_in_its_middle_and_reported(self, exporter: Export) -> None:
        body = "*CHI:\tone . •0_1000•\n*CHI:\ttwo . •800_1500•\n*MOT:\tyes . •900_1200•\n"
        done, path = exporter(body, "textgrid")
        found = read.textgrid(path)
        assert found["CHI - utterances"] == [Said("one .", 0, 900), Said("two .", 900, 1500)]
        assert found["MOT - utterances"] == [Said("yes .", 900, 1200)]
        assert whys(done.warnings) == [
            "6:1: “two .” overlaps “one .” of line 5 by 200 ms; a tier cannot hold that, so both are cut at 0.900 s"
        ]
        assert done.is_complete

    def test_what_has_no_length_is_given_one(self, exporter: Export) -> None:
        done, path = exporter("*CHI:\thi .  •500_500•\n%wor:\thi •500_500• .\n", "textgrid")
        assert read.textgrid(path) == {
            "CHI - utterances": [Said("hi .", 500, 501)],
            "CHI - words": [Said("hi", 500, 501)],
        }
        assert whys(done.warnings) == [
            "5:1: “hi .” has no length; it is given 1 ms",
            "6:7: “hi” has no length; it is given 1 ms",
        ]

    def test_a_word_without_a_time_is_missing_and_its_place_told(self, exporter: Export) -> None:
        done, path = exporter(
            "*CHI:\tone two , three .  •0_900•\n%wor:\tone •0_100• two ,\n\tthree •500_900• .\n", "textgrid"
        )
        assert read.textgrid(path)["CHI - words"] == [Said("one", 0, 100), Said("three", 500, 900)]
        assert whys(done.missing) == ["6:19: this word has no time, so no tier can hold it"]
        assert not done.is_complete
        assert done.words == 2

    def test_quotes_and_letters_of_any_script(self, exporter: Export) -> None:
        body = '*ÄÖ:\tsagte “"hm"” Привет \U0001f600 e\u0301 \\a .  •0_900•\n'
        body += '%wor:\t"hm" •0_100• привет •100_200• 我 •200_300• .\n'
        _, path = exporter(body, "textgrid")
        found = read.textgrid(path)
        assert [word.text for word in found["ÄÖ - words"]] == ['"hm"', "привет", "我"]
        assert found["ÄÖ - utterances"][0].text == 'sagte “"hm"” Привет \U0001f600 e\u0301 \\a .'


class TestEaf:
    def test_words_are_a_tier_below_their_utterances(self, exporter: Export, tmp_path: Path) -> None:
        (tmp_path / "talk.wav").touch()
        done, path = exporter(TWO, "eaf")
        found = read.eaf(path)
        assert found.parents == {f"{who} - words": f"{who} - utterances" for who in ("CHI", "MOT")}
        assert found.tiers["MOT - utterances"] == [Said("you do ?", 2600, 3005)]
        assert found.tiers["MOT - words"] == [Said("you", 2650, 2801), Said("do", 2801, 3000)]
        assert found.media == {
            "MEDIA_URL": f"file://{tmp_path.resolve()}/talk.wav",
            "RELATIVE_MEDIA_URL": "./talk.wav",
            "MIME_TYPE": "audio/x-wav",
        }
        assert done.warnings == []

    @pytest.mark.parametrize(
        ("media", "url", "kind"),
        [
            ("talk, audio", "talk.wav", "audio/x-wav"),
            ('"my film é, one", video, unlinked', "my film é, one.mp4", "video/mp4"),
            ("talk.mp3, audio", "talk.mp3", "audio/*"),
        ],
    )
    def test_a_recording_that_is_not_there_is_linked_by_its_name(
        self, exporter: Export, media: str, url: str, kind: str
    ) -> None:
        done, path = exporter("*CHI:\thi . •0_9•\n", "eaf", head=f"@UTF8\n@Begin\n@Media:\t{media}\n")
        found = read.eaf(path)
        assert found.media == {"MEDIA_URL": url, "RELATIVE_MEDIA_URL": f"./{url}", "MIME_TYPE": kind}
        assert "linked by its name alone" in done.warnings[0].why

    def test_an_utterance_is_widened_to_hold_its_words(self, exporter: Export) -> None:
        done, path = exporter("*CHI:\thi you . •500_900•\n%wor:\thi •400_600• you •700_950• .\n", "eaf")
        found = read.eaf(path)
        assert found.tiers["CHI - utterances"] == [Said("hi you .", 400, 950)]
        assert found.tiers["CHI - words"] == [Said("hi", 400, 600), Said("you", 700, 950)]
        assert "5:1: words lie outside of this turn's 0.500 to 0.900 s, so here it lasts 0.400 to 0.950 s" in whys(
            done.warnings
        )

    def test_an_overlap_of_utterances_is_cut_beside_their_words(self, exporter: Export) -> None:
        body = "*CHI:\tone . •0_1000•\n%wor:\tone •100_790• .\n*CHI:\ttwo . •780_1500•\n%wor:\ttwo •800_1400• .\n"
        _, path = exporter(body, "eaf")
        found = read.eaf(path)
        assert found.tiers["CHI - utterances"] == [Said("one .", 0, 800), Said("two .", 800, 1500)]
        assert found.tiers["CHI - words"] == [Said("one", 100, 790), Said("two", 800, 1400)]

    def test_words_that_overlap_are_cut_with_their_utterances(self, exporter: Export) -> None:
        body = "*CHI:\tone . •0_1000•\n%wor:\tone •0_1000• .\n*CHI:\ttwo . •800_1500•\n%wor:\ttwo •800_1500• .\n"
        done, path = exporter(body, "eaf")
        found = read.eaf(path)
        assert found.tiers["CHI - words"] == [Said("one", 0, 900), Said("two", 900, 1500)]
        assert "6:7: “one” lies outside of its turn, which was cut; here it is at 0.000 to 0.900 s" in whys(
            done.warnings
        )

    def test_an_utterance_within_another_costs_the_rest_of_it(self, exporter: Export) -> None:
        body = "*CHI:\tone two . •0_1000•\n%wor:\tone •0_300• two •700_900• .\n*CHI:\tyes . •400_600•\n"
        done, path = exporter(body, "eaf")
        found = read.eaf(path)
        assert found.tiers["CHI - utterances"] == [Said("one two .", 0, 500), Said("yes .", 500, 600)]
        assert found.tiers["CHI - words"] == [Said("one", 0, 300)]
        assert [(note.line, note.column, note.text) for note in done.missing] == [(6, 19, "two")]
        assert any("and the latter's last 400 ms left out" in why for why in whys(done.warnings))

    def test_a_word_for_which_there_is_no_room_is_missing(self, exporter: Export) -> None:
        body = "*CHI:\ta b c . •5_7•\n%wor:\ta •6_7• b •7_7• c •7_7• .\n"
        done, path = exporter(body, "eaf")
        assert [word.text for word in read.eaf(path).tiers["CHI - words"]] == ["a"]
        assert [note.text for note in done.missing] == ["b", "c"]
        assert not done.is_complete

    def test_what_xml_forbids_is_left_out_and_the_rest_escaped(self, exporter: Export) -> None:
        body = '*A&B:\t\x02\x01some\x02\x02 <thing> & &=laughs . •%pic:"x.jpg"• •0_9•\n%wor:\ta\x02b •0_5• .\n'
        _, path = exporter(body, "eaf")
        found = read.eaf(path)
        assert found.tiers["A&B - utterances"] == [Said("some <thing> & &=laughs .", 0, 9)]
        assert found.tiers["A&B - words"] == [Said("ab", 0, 5)]


class TestSubtitles:
    def test_a_vtt_cue_names_the_speaker_and_when_words_start(self, exporter: Export) -> None:
        _, path = exporter(TWO, "vtt")
        assert read.vtt(path) == [
            Cue("CHI", "I want um icecream .", 1000, 2500, (1100, 1500, 1700)),
            Cue("MOT", "you do ?", 2600, 3005, (2650, 2801)),
        ]
        text = path.read_text()
        assert text.startswith("WEBVTT\n\n1\n00:00:01.000 --> 00:00:02.500\n<v CHI>I <00:00:01.100>want ")

    def test_marks_of_vtt_in_the_text_are_escaped(self, exporter: Export) -> None:
        body = "*A<B:\tx . •0_900•\n%wor:\ta&b •0_10• --> •20_30• <c> •40_50• &amp; •60_70• .\n"
        _, path = exporter(body, "vtt")
        (cue,) = read.vtt(path)
        assert (cue.text, cue.stamps) == ("a&b --> <c> &amp; .", (20, 40, 60))
        assert path.read_text().count("-->") == 1
        assert "<v A&lt;B>" in path.read_text()

    def test_a_vtt_cue_is_widened_to_hold_its_words(self, exporter: Export) -> None:
        done, path = exporter("*CHI:\thi you . •500_900•\n%wor:\thi •400_600• you •950_990• .\n", "vtt")
        assert read.vtt(path) == [Cue("CHI", "hi you .", 400, 990, (950,))]
        assert "its cue is at 00:00:00.400 --> 00:00:00.990" in done.warnings[0].why

    def test_srt_says_who_speaks_in_order_of_time(self, exporter: Export) -> None:
        body = "*MOT:\tlater . •3661002_3661003•\n*CHI:\tfirst <xxx> [?] . •5_5•\n*CHI:\t&=laughs . •7_9•\n"
        _, path = exporter(body, "srt")
        assert read.subrip(path) == [
            Cue("CHI", "first .", 5, 6),
            Cue("CHI", "&=laughs .", 7, 9),
            Cue("MOT", "later .", 3_661_002, 3_661_003),
        ]


class TestTables:
    def test_csv_has_a_row_for_each_word(self, exporter: Export) -> None:
        _, path = exporter(TWO + "*CHI:\txxx . •4000_5000•\n", "csv")
        rows = read.rows(path)
        assert list(rows[0]) == [
            "file", "speaker", "utterance", "utterance_start", "utterance_end", "word", "start", "end",
        ]  # fmt: skip
        assert [tuple(row.values())[1:] for row in rows[3:]] == [
            ("CHI", "1", "1.000", "2.500", "icecream", "1.700", "2.400"),
            ("MOT", "2", "2.600", "3.005", "you", "2.650", "2.801"),
            ("MOT", "2", "2.600", "3.005", "do", "2.801", "3.000"),
            ("CHI", "3", "4.000", "5.000", "", "", ""),
        ]

    def test_quotes_and_commas_stay_in_their_field(self, exporter: Export) -> None:
        body = '*CHI:\tx . •0_900•\n%wor:\t"a","b" •0_10• 1,000 .\n'
        done, path = exporter(body, "csv", name='my "talk", one')
        rows = read.rows(path)
        assert [row["word"] for row in rows] == ['"a","b"', "1,000"]
        assert (rows[1]["start"], rows[1]["end"]) == ("", "")
        assert Path(rows[0]["file"]).name == 'my "talk", one.cha'
        assert done.is_complete

    def test_json_follows_its_schema(self, exporter: Export, tmp_path: Path) -> None:
        _, path = exporter(TWO + "*CHI:\t你好 . •4000_5000•\n%wor:\t你好 .\n", "json")
        document = read.document(path)
        utterances = document.pop("utterances")
        assert document == {
            "version": 1,
            "file": str(tmp_path / "talk.cha"),
            "media": {"name": "talk", "kind": "audio"},
            "languages": ["eng"],
        }
        assert utterances[1:] == [
            {
                "number": 2,
                "line": 9,
                "speaker": "MOT",
                "start": 2.6,
                "end": 3.005,
                "text": "you do ?",
                "words": [
                    {"word": "you", "start": 2.65, "end": 2.801},
                    {"word": "do", "start": 2.801, "end": 3.0},
                ],
            },
            {
                "number": 3,
                "line": 11,
                "speaker": "CHI",
                "start": 4.0,
                "end": 5.0,
                "text": "你好 .",
                "words": [{"word": "你好", "start": None, "end": None}],
            },
        ]


class TestReading:
    def test_utterances_without_a_time_are_left_out_with_their_place(self, exporter: Export) -> None:
        body = "*CHI:\tno time .\n*MOT:\ta •5_9• b .\n*MOT:\tc [= .\n*no speaker here\n*CHI:\t •10_20•\n"
        done, path = exporter(body, "json")
        assert [u["number"] for u in read.document(path)["utterances"]] == [2]
        assert [(note.line, note.column) for note in done.left_out] == [(5, 1), (7, 9), (8, 1), (9, 1)]
        assert "names no speaker" in done.left_out[2].why
        assert str(done) == f"{path}: 1 of 5 utterances, 0 words"
        assert not done.is_complete

    def test_an_utterance_whose_words_alone_have_times_gets_theirs(self, exporter: Export) -> None:
        done, path = exporter("*CHI:\thi you .\n%wor:\thi •5_7• you •8_9• .\n", "json")
        (utterance,) = read.document(path)["utterances"]
        assert (utterance["start"], utterance["end"]) == (0.005, 0.009)
        assert done.is_complete

    def test_times_that_end_before_they_start_are_not_times(self, exporter: Export) -> None:
        body = "*CHI:\thi . •9_5•\n*CHI:\thi . •5_9•\n%wor:\thi •9_5• .\n"
        done, path = exporter(body, "json")
        (utterance,) = read.document(path)["utterances"]
        assert utterance["words"] == [{"word": "hi", "start": None, "end": None}]
        assert [(note.line, note.column) for note in done.left_out] == [(5, 12)]
        assert whys(done.warnings) == ["7:7: the time of “hi” ends at 5 ms, before it starts at 9 ms; set it anew"]

    def test_an_utterance_that_is_not_understood_is_exported_with_a_warning(self, exporter: Export) -> None:
        done, path = exporter("*CHI:\thi [= . •5_9•\n", "json")
        assert [u["text"] for u in read.document(path)["utterances"]] == ["hi [= ."]
        assert [(note.line, note.column) for note in done.warnings] == [(5, 10)]

    def test_a_ca_transcript_has_utterances_and_the_words_it_has(self, exporter: Export) -> None:
        body = "*CHI:\t⌈°oh° (well)⌉ my:: ↗ •0_900•\n*MOT:\tno\n\t(2.0) •950_990•\n%wor:\tno •950_990•\n"
        head = HEAD + "@Options:\tCA, CA-Unicode\n"
        _, path = exporter(body, "textgrid", head)
        assert read.textgrid(path) == {
            "CHI - utterances": [Said("⌈°oh° (well)⌉ my:: ↗", 0, 900)],
            "CHI - words": [],
            "MOT - utterances": [Said("no (2.0)", 950, 990)],
            "MOT - words": [Said("no", 950, 990)],
        }
        _, path = exporter(body, "srt", head)
        assert [cue.text for cue in read.subrip(path)] == ["oh my ↗", "no"]

    @pytest.mark.parametrize("form", SUFFIXES)
    @pytest.mark.parametrize("newline", ["\r\n", "\r"])
    def test_line_ends_do_not_matter(self, exporter: Export, form: str, newline: str) -> None:
        _, path = exporter(TWO, form)
        usual = path.read_bytes()
        done, path = exporter(TWO, form, newline=newline)
        assert done.is_complete
        dated = b'DATE="'
        assert path.read_bytes().partition(dated)[0] == usual.partition(dated)[0]
        assert path.read_bytes().partition(b"<HEADER>")[2] == usual.partition(b"<HEADER>")[2]

    @pytest.mark.parametrize("form", SUFFIXES)
    def test_without_any_time_nothing_is_written(self, exporter: Export, form: str) -> None:
        done, path = exporter("*CHI:\tone .\n*CHI:\ttwo .\n", form)
        assert "none of its 2 utterances has a time" in str(done)
        assert "align-client align" in str(done)
        assert not done.is_complete
        assert not path.exists()
        done, path = exporter("", form)
        assert "no utterance in it" in str(done)
        assert not path.exists()


intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=12)


class TestTiers:
    @given(intervals)
    def test_any_intervals_come_apart_and_none_is_lost(self, spans: list[tuple[int, int]]) -> None:
        given_ = [Interval(s, s + n, f"{i}", i, 1, (s, s + n)) for i, (s, n) in enumerate(spans)]
        warnings: list[Note] = []
        result = tiers.apart(given_, warnings)
        assert sorted(i.label for i in result) == sorted(f"{i}" for i in range(len(spans)))
        ends = [time for i in result for time in (i.start_ms, i.end_ms)]
        assert ends == sorted(ends)
        assert all(i.start_ms < i.end_ms for i in result)
        moved = {i.label for i in result if (i.start_ms, i.end_ms) != i.core}
        assert bool(moved) == bool(warnings)

    @given(intervals)
    def test_intervals_that_are_apart_stay_as_they_are(self, spans: list[tuple[int, int]]) -> None:
        at, given_ = 0, []
        for gap, length in spans:
            start, at = at + gap, at + gap + length + 1
            given_.append(Interval(start, at, "x", 1, 1, (start, at)))
        warnings: list[Note] = []
        assert [(i.start_ms, i.end_ms) for i in tiers.apart(given_, warnings)] == [i.core for i in given_]
        assert warnings == []


class TestNames:
    def test_results_are_named_by_their_format_and_keep_the_tree(self, tmp_path: Path) -> None:
        for name in ("in/a/one.cha", "in/Two.v2.CHA"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        targets = [job.target for job in jobs([str(tmp_path / "in")], tmp_path / "out", ".eaf")]
        assert targets == [tmp_path / "out" / "Two.v2.eaf", tmp_path / "out" / "a" / "one.eaf"]

    def test_one_transcript_may_name_its_result(self, tmp_path: Path) -> None:
        (tmp_path / "a.cha").touch()
        out = tmp_path / "other.textgrid"
        assert jobs([str(tmp_path / "a.cha")], out, ".TextGrid") == [Job(tmp_path / "a.cha", out)]
        (tmp_path / "b.cha").touch()
        with pytest.raises(InputError, match="name a folder"):
            jobs([str(tmp_path)], out, ".TextGrid")
