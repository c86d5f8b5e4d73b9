"""French. Its tables were tuned on 30 captions. On 30 others the F1 of exact spans is 0.89 (tests/stages/phrases)."""

from __future__ import annotations

from typing import Final

from phrasebox.stages.phrases.languages.grammar import Grammar, words

_SEVERAL: Final = words("deux trois quatre cinq six sept huit neuf dix onze douze plusieurs quelques")
_COLOUR: Final = words(
    "blanc blanche blancs blanches noir noire noirs noires rouge rouges bleu bleue bleus bleues vert verte verts"
    " vertes jaune jaunes orange rose roses violet violette violets violettes marron gris grise grises beige beiges"
    " brun brune bruns brunes kaki turquoise doré dorée dorés dorées argenté argentée argentés argentées bordeaux"
)
# Stems of verbs in -er whose third person taggers take for a noun or an adjective.
_STEMS: Final = (
    "achèt appu attach attrap avanc bross câlin chant chass charg chevauch coif coup course dans découp descent"
    " dessin dévor distribu embrass encourag entr escalad exécut frapp fum gliss gonfl grimp guid interprèt jardin"
    " jongl jou lanc lav log machin march mang mont mont nag nettoi observ pagai peign photographi pli plong pos"
    " port pouss promèn ram ramass regard répar renvers repass roul saut serv shoot skate souffl soulèv surf tap"
    " tomb tourn travaill travers tricot vers visit vis vol admir aid arros barbot bavard bricol broy cach"
    " calcul camp cherch coll compt crach creus cueill cuisin dépos dessin dévers discut dress écout écras emport"
    " enfourch enseign essay examin fabriqu feuillet flott form frott galop gar grignot hurl install jet lèch lèv"
    " mendi mesur montr navigu observ parl patin pêch pench percut pédal photographi pilot pioch plant point"
    " présent prépar prêch rang râtiss récolt regagn remont rencontr repos respir sirot skateboard"
    " siffl soign sond stationn téléphon tent tir touch trait tremp trott utilis vend voyag"
)
# Participles that describe a thing wherever it is: "une pente enneigée dans le brouillard".
_DESCRIBING: Final = (
    "abandonn allum anim bond boucl bris carrel cass color déchir ensoleill enneig fatigu gel illumin isol masqu"
    " mouill ombrag pav parfum ray rouill surélev tachet tatou tress us verglac vitr"
)
_PARTICIPLES: Final = frozenset(
    f"{stem}é{ending}" for stem in _DESCRIBING.split() for ending in ("", "e", "s", "es")
)
_VERBS: Final = frozenset(f"{stem}{ending}" for stem in _STEMS.split() for ending in ("e", "ent"))

FRENCH: Final = Grammar(
    code="fr",
    method="groups",
    determiners=words(
        "un une des le la les du ce cet cette ces chaque tout toute tous toutes quelques"
        " mon ma mes ton ta tes son sa ses notre nos votre vos leur leurs"
    ),
    elisions=("l'", "l\u2019"),
    definite=words("le la les ce cet cette ces"),
    indefinite=words("un une des quelques plusieurs"),
    appositive=words("un une"),
    several=_SEVERAL,
    of=words("de d' d\u2019 du des"),
    by=words("par en derrière sous dans sur contre entre devant à au aux"),
    made=words("photo photographie image portrait"),
    for_=words("pour"),
    joins_bare=words("à"),
    joined_to_none=words(
        "vélo moto cheval pied pieds genoux côté gauche droite travers terre table bord bicyclette"
        " ski skis dos-d'âne califourchon quai proximité partir cause mi-chemin distance"
    ),
    joins_materials=words("en"),
    materials=words(
        "bois métal acier fer cuir plastique verre pierre pierres brique briques béton paille laine coton"
        " jean jeans velours soie fourrure osier carton papier céramique caoutchouc bronze marbre or argent lin"
        " denim toile tissu dentelle tricot mousse fonte cristal terre porcelaine rotin bambou"
    ),
    before_nouns=words(
        "petit petite petits petites grand grande grands grandes gros grosse grosses jeune jeunes"
        " vieux vieil vieille vieilles beau bel belle beaux belles bon bonne bons bonnes joli jolie jolis jolies"
        " nouveau nouvel nouvelle nouveaux nouvelles long longue longs longues haut haute hauts hautes autre autres"
        " même mêmes premier première premiers premières dernier dernière large larges double court petits"
    ),
    adjectives=_PARTICIPLES
    | words(
        "roulant roulants souriant souriante souriants souriantes âgé âgée âgés âgées barbu barbue"
        " barbus chauve chauves blond blonde blonds blondes roux rousse rousses rayé rayée"
        " rayés rayées fleuri fleurie fleuris fleuries moustachu moustachus tatoué tatouée frisé frisés masqué"
        " masqués casqué casqués adulte adultes géant géante géants géantes plat plate plats plates"
    ),
    has_adjectives_behind=True,
    postures=words(
        "torse assis assise assises debout couché couchée couchés couchées allongé allongée allongés allongées"
        " accroupi accroupie accroupis accroupies agenouillé agenouillée agenouillés agenouillées penché penchée"
        " penchés penchées perché perchée perchés perchées appuyé appuyée appuyés appuyées adossé adossée adossés"
        " vêtu vêtue vêtus vêtues habillé habillée habillés habillées coiffé coiffée coiffés coiffées entouré"
        " entourée entourés entourées garé garée garés garées posé posée"
        " posés posées installé installée installés installées équipé équipée équipés équipées muni munie munis"
        " accompagné accompagnée accompagnés accompagnées réuni réunis réunies rassemblé rassemblés rassemblées"
        " couvert couverte couverts couvertes rempli remplie remplis remplies recouvert recouverte recouverts"
    ),
    verbs=_VERBS
    | words(
        "court courent dort dorment lit lisent tient tiennent boit boivent sort sortent sert servent part partent"
        " prend prennent met mettent fait font va vont vient viennent suit suivent rit rient sourit sourient peint"
        " descend descendent attend attendent vend vendent tond tondent bat battent conduit conduisent essaie"
        " promène promènent franchit franchissent nourrit nourrissent remplit remplissent saisit bondit"
        " surgit applaudit applaudissent joue jouent paraît se est sont ont a"
    ),
    wearing=words("en portant porte portent"),
    dressed=words("vêtu vêtue vêtus vêtues habillé habillée habillés habillées"),
    lists={
        "colour": _COLOUR,
        "drop": words(
            "air arrière-plan avant-plan premier-plan plan fond loin distance direction côté droite"
            " gauche travers dessus"
            " dessous intérieur extérieur sol haut bas milieu matin soir nuit jour journée après-midi midi"
            " moment heure"
            " an année saison temps fois façon manière chose figure attention ambiance atmosphère action mouvement"
            " pause équilibre vue bonheur joie plaisir besoin face vitesse cause suite sens saut pirouette plongeon"
            " acrobatie sieste promenade balade discussion conversation vacances travail"
        )
        | {"font queue", "fait queue", "faisant queue", "en vol", "en train", "en cours", "en tour"},
        "frame": words(
            "côté plan bord milieu centre intérieur extérieur haut bas coin bout fond sommet devant"
            " arrière avant droite"
            " gauche photo photographie image vue gros-plan portrait dessus dessous pied long proximité base moitié"
        ),
        "quantity": words(
            "groupe foule paire couple dizaine douzaine centaine tas pile bande troupeau ensemble rangée série"
            " file morceau tranche bouquet poignée troupe meute vol trio nombre multitude sorte type"
        ),
        "bare": words("sorte type façon point partie reste"),
        "clothing-in-pairs": words("lunettes jumelles ciseaux collants"),
        "object-like-colour": words("orange oranges rose roses"),
    },
    nouns="""
[words]
1: un une seul seule
2: deux couple
3: trois trio
4: quatre
5: cinq
6: six
7: sept
8: huit
9: neuf
10: dix
several: plusieurs quelques groupe foule nombreux nombreuses équipe
other: autre autres second seconde deuxième
young: jeune jeunes petit petite petits petites
old: vieux vieil vieille vieilles âgé âgée âgés âgées adulte adultes
male: masculin
female: féminine
colour: blanc blanche blancs blanches noir noire noirs noires rouge rouges bleu bleue bleus bleues
colour: vert verte verts vertes jaune jaunes orange rose roses violet
colour: violette marron gris grise grises beige brun brune bruns brunes doré dorée
no modifier: de d' du des la le les l' à au aux et en dans sur avec

[people]
person: personne gens humain inconnu passant piéton spectateur couple groupe foule public famille membre ami équipe
person: touriste invité client passager étudiant élève adolescent photographe professeur médecin skieur surfeur coureur
person: cycliste motard nageur grimpeur randonneur joueur athlète ouvrier soldat policier pompier musicien danseur
person +man: homme monsieur mari père papa mec marié fils roi prêtre
person +woman: femme dame épouse mère maman mariée fille reine
person +child: enfant bébé gamin gosse bambin nourrisson
person +man +child: garçon
person +woman +child: fille fillette
person/worker: ouvrier cuisinier serveur serveuse vendeur vendeuse boulanger pêcheur agriculteur coiffeur
person/player: joueur joueuse athlète gardien
person/rider/cyclist: cycliste
person/rider/motorcyclist: motard motocycliste
person/performer: musicien musicienne chanteur chanteuse danseur danseuse acteur artiste guitariste

[animals]
animal: animal bête
animal/dog: chien chiot chienne labrador berger terrier
animal/cat: chat chaton
animal/bird: oiseau pigeon mouette aigle perroquet
animal/bird/waterbird: canard oie cygne
animal/horse: cheval poney âne
animal/cow: vache taureau veau
animal/sheep: mouton agneau chèvre
animal/fish: poisson requin dauphin
animal: éléphant girafe zèbre ours lion tigre singe lapin écureuil cerf

[clothing]
clothing: vêtement tenue uniforme costume
clothing/top: chemise t-shirt tee-shirt haut pull sweat maillot chemisier débardeur
clothing/coat: manteau veste blouson gilet anorak imperméable
clothing/dress: robe jupe
clothing/bottoms: pantalon jean jeans legging
clothing/bottoms/shorts: short
clothing/headgear: chapeau casquette bonnet béret
clothing/headgear/helmet: casque
clothing/scarf: écharpe foulard
clothing/eyewear: lunettes
clothing/footwear: chaussure botte basket sandale
clothing/gloves: gant
clothing/bag: sac

[body]
body/hair: cheveu cheveux barbe moustache
body/head: tête visage
body/mouth: bouche gueule langue
body/arm: bras main doigt
body/leg: jambe pied genou patte

[vehicles]
vehicle: véhicule
vehicle/car: voiture automobile taxi
vehicle/bus: bus autobus autocar
vehicle/truck: camion
vehicle/bike: vélo bicyclette
vehicle/motorbike: moto motocyclette scooter
vehicle/boat: bateau barque canoë kayak voilier
vehicle/train: train tramway métro
vehicle/plane: avion hélicoptère

[sport]
toy/ball: ballon balle
board/skateboard: skateboard skate planche
board/surfboard: planche
board/snowboard: snowboard

[places]
water: eau mer océan lac rivière fleuve étang piscine vague
shore: plage rivage côte sable
ground/snow: neige glace
ground/grass: herbe pelouse gazon pré champ prairie
ground/hill: colline montagne pente
ground/rock: rocher pierre falaise
road: rue route chemin trottoir sentier
forest: forêt bois arbre
building: bâtiment maison immeuble église magasin
wall: mur
fence: clôture barrière
""",
)
