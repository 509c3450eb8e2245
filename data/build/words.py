"""The words of the town.

First what questions are asked about, then the colour of the day: what is sold, worn, seen, felt
and talked about. A seed draws from these lists by position, so a changed list is another corpus.
"""

# fmt: off
GIRLS = """
Mia Ana Eva Lily Nora Rosa Ivy Ada Clara Emma Ruby Alice Greta Helen Iris Julia Laura Maria Olga
Sara Vera Zoe""".split()
BOYS = """
Tom Ben Max Leo Finn Hugo Otto Paul Sam Theo Carl David Felix George Henry Jack Karl Luke Mark Noah
Oscar Peter""".split()
PEOPLE = GIRLS + BOYS
COLOURS = "red blue green yellow black white silver golden purple orange".split()
NOUNS = """
key lamp book coin ball cup hat rope bell map ring spoon kite scarf candle letter drum flute hammer
mirror pencil whistle lantern box""".split()
SPOTS = [f"{where} the {what}" for where, things in {
    "in": "drawer basket barrel bucket sack cupboard jar trunk crate wagon",
    "on": "shelf table bench wall roof chair windowsill ladder",
    "under": "bed bridge stairs rug tree stone",
    "behind": "door barn clock curtain fence oven",
}.items() for what in things.split()]
PLACES = """
mill bakery school market harbour library station church farm forge theatre museum garden inn tower
orchard lake meadow""".split()
LOCKED = "chest safe locker cabin gate cellar".split()
PETS = "cat dog goat rabbit pony hen duck turtle parrot mouse sheep fox".split()
FOODS = "bread soup cheese honey plums pears apples pancakes porridge cake beans carrots".split()
SECRETS = """
river window thunder copper feather marble winter lemon dragon velvet planet button ginger pepper
island cactus violin anchor pebble saddle""".split()
JOBS = "baker miller teacher sailor doctor farmer painter tailor singer gardener smith cook".split()

# What a person may be told about: (fact, questions). {p} is the person, {c} a thing with a lock,
# {v} the value to recall. A fact is its own answer.
FACT_KINDS = {
    "code": ("The code of {p}'s {c} is {v}.",
             ("What is the code of {p}'s {c}?", "Do you know the code of {p}'s {c}?")),
    "colour": ("{p}'s favourite colour is {v}.", ("What is {p}'s favourite colour?",)),
    "home": ("{p} lives near the {v}.", ("Where does {p} live?",)),
    "pet": ("{p}'s pet is a {v}.", ("What is {p}'s pet?",)),
    "food": ("{p} likes to eat {v}.", ("What does {p} like to eat?",)),
    "word": ("{p}'s secret word is {v}.", ("What is {p}'s secret word?",)),
    "job": ("{p} works as a {v}.", ("What does {p} work as?",)),
}
VALUES = {"colour": COLOURS, "home": PLACES, "pet": PETS, "food": FOODS, "word": SECRETS,
          "job": JOBS}

# No question is asked about what follows.
DAYTIMES = ("morning", "afternoon", "evening", "day")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
KINDS_OF_DAY = ("cold", "warm", "quiet", "bright", "grey", "windy")
LASTING = ("came early", "did not last", "stayed all day")
NIGHTS = ("cold", "warm", "long", "short", "quiet", "dry")
NOISES = ("dog barked", "door closed", "band played", "child laughed", "bird sang")
# fmt: on
GOODS = """
apricots baskets blankets bottles bowls bricks brooms brushes butter buttons cabbages candles
carpets cherries chestnuts chocolate cinnamon clocks cloth coal coffee cotton cucumbers
cushions feathers figs flour flowers garlic ginger glass gloves grapes herbs hooks ink jam
kettles ladders leather lemons lentils linen melons mushrooms mustard nails needles noodles
nuts oats olives onions oranges paint paper peaches peppers pillows plates potatoes pots
pumpkins raisins raspberries ribbons rice ropes saddles salt scissors seeds shoes silk soap
spices spinach strawberries string sugar tea tomatoes toys turnips umbrellas vinegar walnuts
wax wheat wine wood wool yarn""".split()
MOODS = """
afraid amazed angry anxious ashamed bored brave calm careful careless cheerful clever confused
content curious delighted eager excited frightened funny gentle glad grateful grumpy hopeful
hungry impatient jealous lazy lonely lucky merry nervous patient peaceful playful pleased
polite proud puzzled quiet relieved restless sad serious shy silent sleepy stubborn surprised
thankful thirsty tired upset wise worried""".split()
HOW = """
carefully cheerfully slowly quickly quietly loudly politely proudly gently bravely calmly
suddenly softly warmly happily sadly secretly eagerly patiently kindly finally gladly
nervously gracefully neatly lazily honestly firmly""".split()
TOPICS = """
adventure autumn bees birthdays bridges butterflies castles caves clouds cooking courage
dancing deserts dreams earthquakes elephants farming festivals fireworks fishing forests
friendship games ghosts giants gold holidays horses insects inventions jewels journeys kings
kindness learning legends lightning lions luck machines magic maps medicine money mountains
music neighbours numbers oceans painting pirates planets poems politics promises puzzles
queens rainbows riddles rivers robots rockets sailing schools secrets ships snowmen songs
sports spring stars storms summer swimming thieves thunder tigers trains travel treasure trees
trips volcanoes waterfalls weddings whales wizards wolves""".split()
DOINGS = """
baked a pie|built a fence|carved a wooden horse|caught three fish|chased a butterfly|
cleaned the stove|climbed a hill|collected shells|cooked dinner|counted the stars|
danced in the rain|danced until midnight|drank lemonade|dug a hole|drew a picture|
dropped a plate|dried the dishes|fed the chickens|finished a puzzle|folded the sheets|
gathered firewood|invented a game|knitted a sweater|laughed for a minute|learned a poem|
lit the fire|mended a sock|milked the cow|mixed some paint|opened a parcel|
ordered a pancake|packed a suitcase|painted the gate|picked berries|planted an oak|
played chess|played the guitar|polished the boots|practised the piano|prepared breakfast|
raked the leaves|read the newspaper|repaired the bicycle|rested in the shade|
roasted some chestnuts|rolled down the slope|sharpened a knife|skipped a stone|
sketched the valley|sneezed twice|solved a riddle|sorted the mail|stacked the chairs|
stirred the stew|studied the stars|tasted the jam|tied a knot|told a joke|
trimmed the hedge|visited an uncle|wandered along the shore|watched the sunset|
watered the roses|whispered something|whistled a tune|wrapped a present|wrote a postcard|
yawned and stretched|took a photograph|made a sandwich|lost a tooth|found a coin|
won a prize|missed a train|took a nap|bought a ticket|borrowed an umbrella|
returned a favour|kept a promise|told the truth|broke a cup by accident|
guessed the answer|measured the room|weighed the flour"""
DOINGS = [" ".join(d.split()) for d in DOINGS.split("|")]
SIGHTS = """
a balloon|a bear|a beetle|a camel|a caterpillar|a circus|a comet|a crow|a deer|
a dolphin|a dragonfly|an eagle|an elephant|a firefly|a flock of geese|a frog|
a hedgehog|a heron|a kitten|a ladybird|a lizard|a magician|a mole|a monkey|an otter|
an owl|a parade|a peacock|a pelican|a pigeon|a postman|a puppy|a rainbow|a raven|
a robin|a seagull|a shooting star|a snail|a sparrow|a spider|a squirrel|a stork|
a stranger|a swan|a tractor|a troop of soldiers|a wagon|a whale|a windmill|
a woodpecker|a policeman|a juggler|a shepherd|a butcher|a captain|a carpenter|a clown|
a dentist|a fisherman|a hunter|a judge|a librarian|a mayor|a merchant|a musician|
a nurse|a pilot|a poet|a potter|a prince|a princess|a professor|a shopkeeper|
a traveller|a waiter|a watchmaker|a weaver|a writer"""
SIGHTS = [" ".join(s.split()) for s in SIGHTS.split("|")]
BEYOND = """
beyond the hills|across the river|in the distance|over the rooftops|near the old well|
along the path|among the reeds|behind the clouds|beside the fountain|below the cliff|
between two houses|by the roadside|down in the valley|from the balcony|in the forest|
in the meadows|on the horizon|on the other bank|outside the walls|through the window|
under the lamps|up in the mountains|at the edge of town|around the corner|
in the courtyard|next to the chimney|on a distant island"""
BEYOND = [" ".join(b.split()) for b in BEYOND.split("|")]
SAYINGS = """
I would like some more tea|That is a wonderful idea|Please be careful|
Have you heard the news?|I will see you tomorrow|Thank you for everything|
Do not worry about it|Everything will be fine|I have never seen anything like it|
You are a true friend|Let us go home|Who is knocking?|What shall we do next?|
I have forgotten my umbrella|It is your turn|Listen to the wind|Look at that|Welcome back|
I am sorry I am late|Perhaps it will rain|How strange|Never mind|You must be joking|
I told you so|There is plenty of time|Shall we dance?|My feet hurt|The soup is too hot|
Nobody knows|I can hardly believe it|Why not?|Happy birthday|Keep your voice down|
I need a holiday|Somebody has eaten the cake|Wait for me|We should hurry|Good luck|
Be patient|I promise|It was only a dream|The best is yet to come|Try again|
Everyone makes mistakes|Better late than never"""
SAYINGS = [" ".join(s.split()) for s in SAYINGS.split("|")]
MONTHS = """
January February March April May June July August September October November December""".split()
NUMBERS = """
two three four five six seven eight nine ten eleven twelve twenty thirty forty
fifty""".split()
SIZES = """
tiny small little big large huge enormous tall short long round heavy light old new ancient
modern broken pretty beautiful ugly dusty shiny clean dirty wet dry hot cold warm cool strange
ordinary famous forgotten mysterious noisy""".split()
BUILDINGS = """
bridge castle cottage factory hospital hotel house lighthouse palace port prison restaurant
shop stable tavern temple tunnel warehouse wharf workshop barn chapel bank cinema kitchen""".split()
# Words the town seldom uses but a reader of the course will type: the tokenizer should not fall
# back to letters on them.
COMMON = """
about above actually address again against algorithm almost already although always among
amount animal another answer anyone anything appear array attention available average
bandwidth batch became because become before begin behind believe between bottom buffer build
business byte cache called cannot capacity capital cause center change chapter character
checkpoint choose circle close coffee color column common company compare compute computer
consider contain context control copy core could count country course create current data
decide decode decoder deep deliver describe design detail develop device different difference
difficult direct discover divide document double draft drive during dynamic early earth easy
economy effect either embedding empty encoder energy engine English enough enter equal error
even event every evidence example except expect experience explain express extra factor false
family fast feature fewer figure final follow forward fraction function future general
generate government gradient graph group growth hardware hello history however human idea
image important improve include increase index inference inside instead integer interest
internet kernel knowledge language large latency layer leader learner length level library
likely limit linear list load local logic longer machine manage matrix maybe meaning measure
member memory message method middle million minimum minute model modern moment month mother
movement multiply nation natural network neural nothing number object offer office often
operation option order original other output outside page parallel parameter parent particular
pattern people perhaps period physical picture point political position possible power predict
prefix present president pressure probably problem process produce product program project
prompt proof property protect provide public quality quantum question random rather reach
reader reason receive recent record reduce region relative remember remove repeat replace
report request research resource result return reverse right round sample scale science second
section sentence sequence server service several shape share should signal similar simple
simply since single size social society software something sometimes source space special
speed square stage standard start state static statistics step still stop storage stream
street string structure student subject system table target teacher technique technology
temperature tensor theory therefore thing think thousand thread throughput tier token
tokenizer together tomorrow toward trace traffic transfer transformer tree true trust type
under understand union unit university until update upon usage user usually value vector
version video village virtual vocabulary water weight which whole width window within without
woman wonder word world would write wrong yesterday young zero""".split()
