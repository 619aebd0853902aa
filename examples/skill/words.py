"""The words of the skill model: each is one token in four forms, each digit is one token."""

from typing import Final

NUMBER_WORDS: Final = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)

_THINGS: Final = """
red blue green gold pink gray black white brown
cat dog fox owl bee ant cow pig hen bat rat elk bear wolf deer frog toad fish crab duck
goose swan crow dove hawk seal lion goat lamb mule
sun moon star sky sea lake hill rock sand snow rain wind fire ice fog mud leaf tree
rose fern moss reed oak elm ash pine palm
cup pot pan jar box bag hat coat shoe sock belt ring bell drum harp horn
cake pie soup rice bean corn plum pear lime fig nut egg milk tea salt jam
car bus boat ship train road gate door lamp rope nail
"""
THINGS: Final = tuple(_THINGS.split())

WORDS: Final = (*THINGS, *NUMBER_WORDS)
DIGITS: Final = tuple("0123456789")
WORD_OF_DIGIT: Final = dict(zip(DIGITS, NUMBER_WORDS, strict=True))
