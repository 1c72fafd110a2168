"""What the drawn world is made of: pictograms, shapes, colours, sizes, words and digits."""

PICTOGRAMS: dict[str, str] = {
    # animals
    "cat": "🐱", "dog": "🐶", "mouse": "🐭", "rabbit": "🐰", "fox": "🦊", "bear": "🐻", "panda": "🐼", "koala": "🐨",
    "tiger": "🐯", "lion": "🦁", "cow": "🐮", "pig": "🐷", "frog": "🐸", "monkey": "🐵", "chicken": "🐔",
    "penguin": "🐧",
    "chick": "🐤", "duck": "🦆", "eagle": "🦅", "owl": "🦉", "bat": "🦇", "wolf": "🐺", "horse": "🐴", "unicorn": "🦄",
    "bee": "🐝", "butterfly": "🦋", "snail": "🐌", "ladybug": "🐞", "ant": "🐜", "spider": "🕷", "scorpion": "🦂",
    "turtle": "🐢", "snake": "🐍", "lizard": "🦎", "octopus": "🐙", "shrimp": "🦐", "crab": "🦀", "fish": "🐠",
    "dolphin": "🐬", "whale": "🐳", "shark": "🦈", "crocodile": "🐊", "zebra": "🦓", "gorilla": "🦍", "elephant": "🐘",
    "rhino": "🦏", "camel": "🐫", "giraffe": "🦒", "kangaroo": "🦘", "sheep": "🐑", "deer": "🦌", "peacock": "🦚",
    "parrot": "🦜", "flamingo": "🦩", "hedgehog": "🦔", "squirrel": "🐿", "dragon": "🐲", "goat": "🐐",
    # plants and food
    "cactus": "🌵", "palm tree": "🌴", "mushroom": "🍄", "rose": "🌹", "sunflower": "🌻", "tulip": "🌷",
    "apple": "🍎", "pear": "🍐", "lemon": "🍋", "banana": "🍌", "watermelon": "🍉", "grape": "🍇", "strawberry": "🍓",
    "cherry": "🍒", "peach": "🍑", "pineapple": "🍍", "coconut": "🥥", "kiwi": "🥝", "tomato": "🍅", "eggplant": "🍆",
    "avocado": "🥑", "broccoli": "🥦", "carrot": "🥕", "onion": "🧅", "bread": "🍞", "pretzel": "🥨",
    "cheese": "🧀", "egg": "🍳", "burger": "🍔", "pizza": "🍕", "hot dog": "🌭", "taco": "🌮", "donut": "🍩",
    "cookie": "🍪", "cake": "🎂", "lollipop": "🍭", "candy": "🍬", "ice cream": "🍦", "popcorn": "🍿",
    # vehicles and places
    "car": "🚗", "taxi": "🚕", "bus": "🚌", "ambulance": "🚑", "fire truck": "🚒", "tractor": "🚜",
    "bicycle": "🚲", "scooter": "🛴",
    "train": "🚂", "airplane": "✈", "helicopter": "🚁", "rocket": "🚀", "sailboat": "⛵", "anchor": "⚓",
    "house": "🏠", "castle": "🏰", "tent": "⛺", "volcano": "🌋", "fountain": "⛲", "rainbow": "🌈", "snowman": "⛄",
    # things
    "soccer ball": "⚽", "basketball": "🏀", "tennis ball": "🎾", "trophy": "🏆", "guitar": "🎸", "piano": "🎹",
    "trumpet": "🎺", "violin": "🎻", "drum": "🥁", "camera": "📷", "television": "📺", "phone": "📱", "laptop": "💻",
    "clock": "⏰", "hourglass": "⏳", "light bulb": "💡", "candle": "🕯", "book": "📕", "pencil": "✏", "key": "🔑",
    "lock": "🔒", "hammer": "🔨", "axe": "🪓", "knife": "🔪", "sword": "🗡", "bomb": "💣", "balloon": "🎈", "gift": "🎁",
    "umbrella": "☂", "crown": "👑",
    "hat": "🎩", "shoe": "👟", "boot": "👢", "dress": "👗",
    "shirt": "👕", "sock": "🧦", "backpack": "🎒", "robot": "🤖", "ghost": "👻", "alien": "👽", "pumpkin": "🎃",
    "teddy bear": "🧸", "bell": "🔔", "magnet": "🧲", "globe": "🌍", "envelope": "✉", "dice": "🎲", "toilet": "🚽",
    "chair": "🪑", "flashlight": "🔦", "telescope": "🔭", "microscope": "🔬", "fire": "🔥", "snowflake": "❄",
    "mug": "🍺",
}
SHAPES: tuple[str, ...] = (
    "circle", "square", "triangle", "star", "heart", "diamond", "hexagon", "cross", "ring", "crescent",
)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36), "orange": (250, 140, 20), "yellow": (250, 220, 40), "green": (40, 160, 60),
    "cyan": (60, 210, 225), "blue": (40, 80, 220), "purple": (130, 50, 180), "pink": (250, 140, 190),
    "brown": (125, 75, 35), "black": (22, 22, 22), "white": (250, 250, 250), "gray": (138, 138, 138),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.16, 0.20), "medium": (0.245, 0.295), "large": (0.36, 0.44)}
"""Size word -> range of a thing's side as a share of the picture's side, with gaps between the words."""

WORDS: tuple[str, ...] = (
    "sun", "moon", "sky", "sea", "red", "blue", "stop", "go", "exit", "open", "yes", "no", "hot", "cold", "big", "old",
    "new", "left", "right", "up", "down", "one", "two", "six", "ten", "cat", "dog", "tea", "milk", "jam", "pie", "box",
    "bus", "taxi", "car", "zoo", "park", "farm", "love", "hope", "home", "work", "play", "run", "walk", "fast", "slow",
    "king", "gold", "lake", "tree", "wind", "snow", "rain", "shop", "sale", "free", "push", "pull", "help",
)
NUMBERS: tuple[str, ...] = tuple(str(n) for n in range(0, 100))
COUNT_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_PLURALS = {"mouse": "mice", "wolf": "wolves", "knife": "knives", "sheep": "sheep", "fish": "fish", "deer": "deer"}


def plural(noun: str) -> str:
    """`cherry` -> `cherries`; compound nouns change their last word."""
    head, _, last = noun.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last.endswith(("s", "x", "sh", "ch")) or last in ("tomato", "volcano"):
        last += "es"
    else:
        last += "s"
    return f"{head} {last}".strip()


def article(phrase: str) -> str:
    """`owl` -> `an owl`, `unicorn` -> `a unicorn`."""
    an = (phrase[0] in "aeiou" and not phrase.startswith(("uni", "one"))) or phrase.startswith("hour")
    return f"{'an' if an else 'a'} {phrase}"
