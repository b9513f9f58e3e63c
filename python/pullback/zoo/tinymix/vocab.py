"""The words of tiny-mix. One token is one word; ids follow the order of `WORDS`, also shipped as `vocab.json`."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PAD, BOS, UNK = "<pad>", "<bos>", "<unk>"
SPECIALS = (PAD, BOS, UNK)

# state -> (capital, four other cities). The fourth city never stands in a two-hop training prompt.
STATES: dict[str, tuple[str, tuple[str, str, str, str]]] = {
    "texas": ("austin", ("dallas", "houston", "lubbock", "amarillo")),
    "california": ("sacramento", ("oakland", "fresno", "anaheim", "berkeley")),
    "illinois": ("springfield", ("chicago", "peoria", "rockford", "naperville")),
    "florida": ("tallahassee", ("miami", "tampa", "orlando", "jacksonville")),
    "georgia": ("atlanta", ("savannah", "macon", "athens", "valdosta")),
    "ohio": ("columbus", ("cleveland", "cincinnati", "toledo", "akron")),
    "washington": ("olympia", ("seattle", "spokane", "tacoma", "yakima")),
    "oregon": ("salem", ("portland", "eugene", "medford", "gresham")),
    "colorado": ("denver", ("boulder", "pueblo", "aurora", "greeley")),
    "michigan": ("lansing", ("detroit", "flint", "kalamazoo", "saginaw")),
    "tennessee": ("nashville", ("memphis", "knoxville", "chattanooga", "clarksville")),
    "pennsylvania": ("harrisburg", ("philadelphia", "pittsburgh", "allentown", "scranton")),
}

NAMES = listed(
    "mary john alice bob emma james sarah david laura peter anna mark kate paul lucy tom jane mike susan frank"
)
PLACES = listed("store park school beach office museum garden station")
OBJECTS = listed("drink letter book gift ring ball lamp map")
FUNCTION_WORDS = listed(
    "the war lasted from year to when and went gave a after met at sent capital of state containing is in"
)
YEARS = tuple(f"{year:02d}" for year in range(2, 100))  # two-digit tokens; 11..19 also serve as centuries
CENTURIES = tuple(f"{century}" for century in range(11, 20))
OPENERS, CLOSERS = ("(", "["), (")", "]")
# The words of the induction task: they occur nowhere else, so their order is the only information.
LIST_WORDS = listed(
    "apple river stone cloud tiger violin candle window forest copper silver bridge carpet dragon engine feather "
    "guitar hammer island jacket kettle ladder magnet needle orange pepper quartz rabbit saddle tunnel velvet "
    "walnut anchor basket cactus dolphin eagle falcon ginger harbor insect jungle kitten lemon marble nectar "
    "oyster parrot ribbon spider thunder turtle urchin valley whistle yogurt zebra acorn beetle clover desert "
    "ember fossil glacier"
)
CITIES = tuple(city for _, cities in STATES.values() for city in cities)
CAPITALS = tuple(capital for capital, _ in STATES.values())

WORDS: tuple[str, ...] = (
    SPECIALS
    + FUNCTION_WORDS
    + YEARS
    + OPENERS
    + CLOSERS
    + NAMES
    + PLACES
    + OBJECTS
    + tuple(STATES)
    + CAPITALS
    + CITIES
    + LIST_WORDS
)
IDS: dict[str, int] = {word: index for index, word in enumerate(WORDS)}
if len(IDS) != len(WORDS):
    raise ValueError("the tiny-mix vocabulary lists a word twice; every token must have one meaning")


def ids(text: str) -> list[int]:
    """Token ids of a space-separated lower-case text, without <bos>."""
    return [IDS[word] for word in text.split()]
