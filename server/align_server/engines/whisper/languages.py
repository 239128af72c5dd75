"""Which languages Whisper knows, and by what names.

The order of the codes is that of the tokens: a model with 99 languages lacks the last.
"""

from __future__ import annotations

from typing import Final

# Whisper's code (ISO 639-1 where there is one), and the ISO 639-3 codes that it serves, the language's own first.
CODES: Final = {
    code: tuple(names.split())
    for code, _, names in (
        line.partition(" ")
        for line in """\
en eng
zh zho cmn
de deu
es spa
ru rus
ko kor
fr fra
ja jpn
pt por
tr tur
pl pol
ca cat
nl nld
ar ara arb
sv swe
it ita
id ind
hi hin
fi fin
vi vie
he heb
uk ukr
el ell
ms msa zsm zlm
cs ces
ro ron
da dan
hu hun
ta tam
no nor nob
th tha
ur urd
hr hrv
bg bul
lt lit
la lat
mi mri
ml mal
cy cym
sk slk
te tel
fa fas pes
lv lav lvs
bn ben
sr srp
az aze azj
sl slv
kn kan
et est ekk
mk mkd
br bre
eu eus
is isl
hy hye
ne nep npi
mn mon khk
bs bos
kk kaz
sq sqi als
sw swa swh
gl glg
mr mar
pa pan
si sin
km khm
sn sna
yo yor
so som
af afr
oc oci
ka kat
be bel
tg tgk
sd snd
gu guj
am amh
yi yid ydd
lo lao
uz uzb uzn
fo fao
ht hat
ps pus
tk tuk
nn nno
mt mlt
sa san
lb ltz
my mya
bo bod
tl tgl fil
mg mlg plt
as asm
tt tat
haw haw
ln lin
ha hau
ba bak
jw jav
su sun
yue yue""".splitlines()
    )
}
# Written without spaces between words.
UNSPACED: Final = frozenset({"zho", "cmn", "jpn", "tha", "lao", "mya", "yue"})

_CODE_OF: Final = {name: code for code, names in CODES.items() for name in names}


def languages(count: int | None) -> tuple[str, ...]:
    """ISO 639-3 codes of a model that knows the first `count` languages, or English alone; English first."""
    if count is None:
        return CODES["en"]
    return tuple(name for names in list(CODES.values())[:count] for name in names)


def code(language: str) -> str | None:
    """Whisper's code for an ISO 639-3 language, None where it has none."""
    return _CODE_OF.get(language)


def language(code: str) -> str | None:
    """The ISO 639-3 language of Whisper's code, None where that is not one."""
    return CODES[code][0] if code in CODES else None
