"""German, by grammar alone: no caption was at hand to tune its tables on."""

from __future__ import annotations

from typing import Final

from phrasebox.stages.phrases.languages.grammar import Grammar, words

_COLOUR: Final = words(
    "weiß schwarz rot blau grün gelb orange rosa lila violett braun grau beige golden gold silber silbern türkis"
)

GERMAN: Final = Grammar(
    code="de",
    method="groups",
    determiners=words(
        "ein eine einen einem einer eines der die das den dem des dieser diese dieses diesen diesem"
        " jeder jede jedes jeden jedem alle allen beide beiden mein meine meinen meinem meiner dein deine deinen"
        " sein seine seinen seinem seiner seines ihr ihre ihren ihrem ihrer ihres unser unsere unseren euer eure"
    ),
    definite=words("der die das den dem des dieser diese dieses diesen diesem beide beiden"),
    indefinite=words("ein eine einen einem einer eines einige mehrere viele"),
    appositive=words("ein eine"),
    several=words("zwei drei vier fünf sechs sieben acht neun zehn elf zwölf viele mehrere einige"),
    of=words("von vom"),
    genitives=words("des der eines einer seines seiner ihres ihrer dieses dieser"),
    wearing=words("in trägt tragen"),
    lists={
        "colour": _COLOUR,
        "drop": words(
            "hintergrund vordergrund seite richtung entfernung ferne nähe luft boden morgen abend nacht"
            " tag mittag moment"
            " stunde jahr zeit mal weise art ding aufmerksamkeit stimmung aktion bewegung freien"
        ),
        "frame": words(
            "seite rand mitte ende ecke spitze teil bild foto fotografie aufnahme ansicht nahaufnahme"
            " porträt vorderseite"
            " rückseite oberseite inneres"
        ),
        "quantity": words(
            "gruppe paar menge haufen stapel reihe dutzend herde schar team mannschaft stück scheibe"
            " strauß bündel rudel"
        ),
        "bare": words("teil art weise"),
        "clothing-in-pairs": words("shorts jeans leggings"),
        "object-like-colour": words("orange gold silber"),
    },
    nouns="""
[words]
1: ein eine einen einem einer einzelner einzelne
2: zwei paar beide beiden
3: drei trio
4: vier
5: fünf
6: sechs
7: sieben
8: acht
9: neun
10: zehn
several: mehrere einige viele gruppe menge team mannschaft
other: anderer andere anderes anderen weiterer weitere zweiter zweite zweites
young: junger junge junges jungen kleiner kleine kleines kleinen
old: alter alte altes alten älterer ältere älteren erwachsener erwachsene
male: männlicher männliche
female: weiblicher weibliche
colour: weißer weiße weißes weißen weißem schwarzer schwarze schwarzes schwarzen schwarzem roter rote rotes roten rotem
colour: blauer blaue blaues blauen blauem grüner grüne grünes grünen grünem gelber gelbe gelbes gelben gelbem brauner
colour: braune braunes braunen grauer graue graues grauen orange rosa lila
no modifier: der die das den dem des von in im an am auf mit und

[people]
person: person mensch leute paar gruppe menge familie freund publikum tourist kunde passagier student schüler
person +man: mann herr vater ehemann bräutigam kerl
person +woman: frau dame mutter ehefrau braut
person +child: kind baby kleinkind säugling
person +man +child: junge bub
person +woman +child: mädchen
person/player: spieler spielerin athlet sportler
person/rider/cyclist: radfahrer fahrradfahrer
person/performer: musiker sänger sängerin tänzer tänzerin

[animals]
animal: tier
animal/dog: hund welpe
animal/cat: katze kater kätzchen
animal/bird: vogel taube möwe
animal/horse: pferd pony
animal/cow: kuh bulle

[clothing]
clothing: kleidung
clothing/top: hemd t-shirt pullover bluse oberteil
clothing/coat: jacke mantel weste
clothing/dress: kleid rock
clothing/bottoms: hose jeans
clothing/headgear: hut mütze kappe
clothing/headgear/helmet: helm
clothing/eyewear: brille sonnenbrille
clothing/footwear: schuh stiefel

[vehicles]
vehicle/car: auto wagen taxi
vehicle/bus: bus
vehicle/truck: lastwagen lkw
vehicle/bike: fahrrad rad
vehicle/motorbike: motorrad
vehicle/boat: boot schiff kanu
vehicle/train: zug straßenbahn
""",
)
