from cvt.system.text import printable


def test_letters_of_any_script_are_printed_as_they_are():
    name = "Stra\N{LATIN SMALL LETTER SHARP S}e \N{CJK UNIFIED IDEOGRAPH-732B} 1.jpg"
    assert printable(name) == name
