"""Spanish, by grammar alone: no caption was at hand to tune its tables on."""

from __future__ import annotations

from typing import Final

from phrasebox.stages.phrases.languages.grammar import Grammar, words

_COLOUR: Final = words(
    "blanco blanca blancos blancas negro negra negros negras rojo roja rojos rojas azul azules verde verdes amarillo"
    " amarilla amarillos amarillas naranja rosa morado morada morados moradas marrón marrones gris grises"
    " beige dorado"
    " dorada plateado plateada"
)

SPANISH: Final = Grammar(
    code="es",
    method="groups",
    determiners=words(
        "un una unos unas el la los las del este esta estos estas ese esa esos esas aquel aquella"
        " cada todo toda todos todas mi mis tu tus su sus nuestro nuestra nuestros nuestras algún alguna"
    ),
    definite=words("el la los las este esta estos estas ese esa esos esas"),
    indefinite=words("un una unos unas varios varias otro otra otros otras"),
    appositive=words("un una"),
    several=words(
        "dos tres cuatro cinco seis siete ocho nueve diez once doce varios varias algunos algunas muchos muchas"
    ),
    of=words("de del"),
    by=words("por"),
    joins_bare=words("a"),
    joined_to_none=words("caballo pie izquierda derecha lado bordo través bicicleta"),
    before_nouns=words(
        "pequeño pequeña pequeños pequeñas gran grande grandes joven jóvenes viejo vieja viejos viejas"
        " buen buena buenos buenas nuevo nueva nuevos nuevas otro otra otros otras mismo misma primer primera"
    ),
    adjectives=words(
        "rubio rubia rubios rubias calvo calva moreno morena anciano anciana barbudo rizado rayado rayada"
    ),
    has_adjectives_behind=True,
    postures=words(
        "sentado sentada sentados sentadas tumbado tumbada tumbados tumbadas acostado acostada acostados"
        " acostadas arrodillado arrodillada vestido vestida vestidos vestidas rodeado rodeada apoyado apoyada parado"
        " parada parados paradas agachado agachada colgado colgada aparcado aparcada"
    ),
    wearing=words("llevando lleva llevan"),
    dressed=words("vestido vestida vestidos vestidas"),
    lists={
        "colour": _COLOUR,
        "drop": words(
            "fondo distancia lado izquierda derecha interior exterior mañana tarde noche día momento hora"
            " año tiempo vez"
            " manera cosa aire suelo través dirección atención ambiente acción movimiento"
        ),
        "frame": words(
            "lado borde orilla centro interior exterior parte fondo esquina cima foto fotografía imagen vista retrato"
        ),
        "quantity": words(
            "grupo par pareja multitud montón pila docena decena fila rebaño manada equipo trozo rebanada"
            " ramo serie banda"
        ),
        "bare": words("parte tipo manera"),
        "clothing-in-pairs": words("gafas pantalones tijeras vaqueros"),
        "object-like-colour": words("naranja rosa"),
    },
    nouns="""
[words]
1: un una uno solo sola
2: dos pareja par
3: tres trío
4: cuatro
5: cinco
6: seis
7: siete
8: ocho
9: nueve
10: diez
several: varios varias algunos algunas muchos muchas grupo multitud equipo
other: otro otra otros otras segundo segunda
young: joven jóvenes pequeño pequeña pequeños pequeñas
old: viejo vieja viejos viejas anciano anciana mayor mayores adulto adultos
male: masculino
female: femenina
colour: blanco blanca blancos blancas negro negra negros negras rojo roja rojos rojas azul azules verde verdes amarillo
colour: amarilla naranja rosa morado morada marrón gris grises beige dorado dorada
no modifier: de del la el los las a al y en con su sus

[people]
person: persona gente pareja grupo multitud familia amigo público turista cliente pasajero estudiante adolescente
person +man: hombre señor padre marido novio chico
person +woman: mujer señora madre esposa novia chica
person +child: bebé
person +man +child: niño chico
person +woman +child: niña chica
person/player: jugador jugadora atleta
person/rider/cyclist: ciclista
person/performer: músico cantante bailarín bailarina

[animals]
animal: animal
animal/dog: perro perra cachorro
animal/cat: gato gata
animal/bird: pájaro ave paloma gaviota
animal/horse: caballo yegua
animal/cow: vaca toro

[clothing]
clothing/top: camisa camiseta jersey suéter blusa
clothing/coat: chaqueta abrigo chaleco
clothing/dress: vestido falda
clothing/bottoms: pantalón pantalones vaqueros
clothing/headgear: sombrero gorra gorro
clothing/headgear/helmet: casco
clothing/eyewear: gafas
clothing/footwear: zapato bota

[vehicles]
vehicle/car: coche automóvil auto taxi
vehicle/bus: autobús
vehicle/truck: camión
vehicle/bike: bicicleta bici
vehicle/motorbike: moto motocicleta
vehicle/boat: barco barca canoa
vehicle/train: tren tranvía
""",
)
