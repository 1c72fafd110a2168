"""How people ask: for each kind of question, phrasings in pairs. The first of a pair is trained on, the second is held
back for testing only. `{the}` is a thing with its article, `{a}` the same with `a`, `{many}` a plural."""

_PAIRS: dict[str, str] = {
    "caption": """
        Describe the picture. | Describe this image.
        What do you see? | What can you see?
        Tell me what is in the picture. | Tell me what you see here.
        What does the picture show? | What does this image show?
        List everything in the image. | List all the things you see.
        Give me a description of this photo. | Write a caption for this picture.
        What is in this image? | What is in the photo?
        Can you describe what you see? | Could you describe the image?
        Please write a short caption. | Please describe what is shown.
        What things are shown here? | What objects are in the picture?
        Name everything you can see. | Name all objects in the image.
    """,
    "what": """
        What is this? | What's this?
        What is shown here? | What do we have here?
        What do you call this? | What is this called?
        Which object is this? | Which thing is shown?
        Can you name this thing? | Can you tell me what this is?
        What am I looking at? | What is it that I see here?
        Name the object. | Name this thing, please.
        What kind of thing is it? | What kind of object is this?
        Do you know what this is? | Do you recognize this?
        What is the object in the picture? | What is the thing in the image?
        Tell me what this is. | Tell me the name of this object.
    """,
    "place_what": """
        What is at the {place}? | What do you see at the {place}?
        Which thing is at the {place}? | Which object is at the {place}?
        What can be seen at the {place} of the picture? | What is shown at the {place} of the image?
        Look at the {place}. What is there? | What is there at the {place}?
        Name the object at the {place}. | Name the thing at the {place}.
        Tell me what is at the {place}. | Can you tell me what is at the {place}?
    """,
    "yesno": """
        Is there {a}? | Is there {a} here?
        Do you see {a}? | Can you see {a}?
        Is there {a} in the picture? | Is {a} in the image?
        Does the image show {a}? | Does the picture show {a}?
        Can {a} be seen? | Is {a} shown?
        Does this picture contain {a}? | Does the photo contain {a}?
        Is {a} visible? | Is {a} visible in the picture?
        Tell me whether there is {a}. | Tell me if you see {a}.
        Is there any sign of {a}? | Is there at least {a} here?
        Have you found {a} in it? | Could there be {a} in this image?
    """,
    "count_all": """
        How many things are there? | How many objects are there?
        How many objects do you see? | How many things do you see?
        Count the things. | Count the objects in the picture.
        How many things are in the picture? | How many objects are in the image?
        What is the number of objects? | What is the number of things here?
        Can you count the objects? | Can you count all the things?
        How many objects can you count? | How many things can you count?
        Tell me how many things there are. | Tell me how many objects you see.
    """,
    "count": """
        How many {many} are there? | How many {many} are here?
        How many {many} do you see? | How many {many} can you see?
        Count the {many}. | Please count the {many}.
        How many {many} are in the picture? | How many {many} are in this image?
        What is the number of {many}? | What's the number of {many} here?
        Can you count the {many}? | Could you count the {many}?
        Tell me how many {many} there are. | Tell me how many {many} you see.
        How many {many} does the image show? | How many {many} does the picture contain?
    """,
    "colour": """
        What color is {the}? | Which color is {the}?
        What is the color of {the}? | What's the color of {the}?
        Which color does {the} have? | What color does {the} have?
        Tell me the color of {the}. | Name the color of {the}.
        Can you tell what color {the} is? | Can you tell me which color {the} has?
        What colour is {the}? | Which colour is {the}?
        {The} is what color? | {The} has what color?
        I want to know the color of {the}. | Do you know what color {the} is?
    """,
    "background": """
        What color is the background? | Which color is the background?
        What is the color of the background? | What's the background color?
        Tell me the background color. | Name the color of the background.
        What is behind the things? | What color is behind the objects?
        Which color does the background have? | What color does the background have?
        On what color are the things drawn? | What colour is the background?
    """,
    "where": """
        Where is {the}? | Where's {the}?
        Where can I find {the}? | Where do you see {the}?
        In which part of the picture is {the}? | In what part of the image is {the}?
        What is the position of {the}? | What is the location of {the}?
        Tell me where {the} is. | Can you tell me where {the} is?
        Where in the image is {the}? | Where in the picture is {the}?
        At which place is {the}? | At what place is {the}?
        Can you find {the}? | Could you locate {the}?
    """,
    "relation": """
        Is {the} {side} {other}? | Would you say {the} is {side} {other}?
        Is it true that {the} is {side} {other}? | Is it right that {the} is {side} {other}?
        Do you see {the} {side} {other}? | Can you see {the} {side} {other}?
        {The} is {side} {other}, right? | {The} is {side} {other}, is that true?
        Does {the} lie {side} {other}? | Is {the} found {side} {other}?
        Tell me if {the} is {side} {other}. | Tell me whether {the} is {side} {other}.
    """,
    "relation_or": """
        Is {the} {side} or {opposite} {other}? | Is {the} found {side} or {opposite} {other}?
        Where is {the}, {side} or {opposite} {other}? | {The} is where, {side} or {opposite} {other}?
        Tell me if {the} is {side} or {opposite} {other}. | Tell me whether {the} is {side} or {opposite} {other}.
        Does {the} lie {side} or {opposite} {other}? | Would you say {the} is {side} or {opposite} {other}?
        Which is right: {the} is {side} or {opposite} {other}? | What is true: {the} is {side} or {opposite} {other}?
        Do you see {the} {side} or {opposite} {other}? | Can you see {the} {side} or {opposite} {other}?
    """,
    "relation_where": """
        Where is {the} compared to {other}? | Where do you see {the} compared to {other}?
        On which side of {other} is {the}? | {The} is on which side of {other}?
        Where is {the}, seen from {other}? | Where can I find {the}, seen from {other}?
        Tell me where {the} is compared to {other}. | Can you tell me where {the} is compared to {other}?
        What is the position of {the} compared to {other}? | What is the location of {the} compared to {other}?
        Seen from {other}, where is {the}? | Compared to {other}, where is {the}?
    """,
    "read": """
        What does the {text} say? | What do you read in the {text}?
        Read the {text}. | Please read the {text}.
        What is written here? | What is written in the image?
        What {text} is in the picture? | Which {text} is in the image?
        Can you read the {text}? | Could you read the {text} to me?
        Which {text} do you see? | What {text} can you see?
        Tell me the {text} in the picture. | Tell me which {text} is written.
        What {text} is shown? | Which {text} is shown?
    """,
    "compare_size": """
        Which is bigger, {the} or {other}? | What is bigger, {the} or {other}?
        Is {the} or {other} bigger? | Is {the} or {other} larger?
        Which one is larger, {the} or {other}? | Which of the two is bigger, {the} or {other}?
        Compare {the} and {other}: which is bigger? | {The} and {other}: which is larger?
        What is larger, {the} or {other}? | Tell me what is larger, {the} or {other}.
        Tell me which is bigger, {the} or {other}. | Can you tell which is bigger, {the} or {other}?
    """,
    "compare_colour": """
        Are {the} and {other} the same color? | Do {the} and {other} share a color?
        Do {the} and {other} have the same color? | Does {the} have the same color as {other}?
        Is {the} the same color as {other}? | Are {the} and {other} of the same color?
        Is the color of {the} the same as the color of {other}? | Is it true that {the} and {other} have the same color?
        Tell me if {the} and {other} have the same color. | Tell me whether {the} and {other} are the same color.
        Compare {the} and {other}: are they the same color? | {The} and {other}: do they have the same color?
    """,
    "compare_count": """
        Are there more {many} than {others}? | Are there more {many} here than {others}?
        Do you see more {many} than {others}? | Can you see more {many} than {others}?
        Is the number of {many} larger than that of {others}? | Is it true that there are more {many} than {others}?
        Does the image show more {many} than {others}? | Does the picture show more {many} than {others}?
        Are {many} more than {others}? | Is there a larger number of {many} than {others}?
        Tell me if there are more {many} than {others}. | Tell me whether there are more {many} than {others}.
    """,
    "missing_colour": """
        What color is {the}? | Which color is {the}?
        What is the color of {the}? | What's the color of {the}?
        Which color does {the} have? | What color does {the} have?
        Tell me the color of {the}. | Name the color of {the}.
        Can you tell what color {the} is? | Can you tell me which color {the} has?
        {The} is what color? | {The} has what color?
    """,
    "missing_where": """
        Where is {the}? | Where's {the}?
        Where can I find {the}? | Where do you see {the}?
        What is the position of {the}? | What is the location of {the}?
        In which part of the picture is {the}? | In what part of the image is {the}?
        Tell me where {the} is. | Can you tell me where {the} is?
        Where in the image is {the}? | Where in the picture is {the}?
    """,
    "missing_text": """
        What does the {text} say? | What do you read in the {text}?
        Read the {text}. | Please read the {text}.
        What {text} is in the picture? | Which {text} is in the image?
        Can you read the {text}? | Could you read the {text} to me?
        Tell me the {text} in the picture. | Tell me which {text} is written.
        Which {text} do you see? | What {text} can you see?
    """,
    "turn_where": """
        Where is it? | Where's it?
        Where can I find it? | Where do you see it?
        And where is it? | And where's that?
        Where in the picture? | Where in the image is that?
        In which part of the image? | In what part of the picture is it?
        Tell me where it is. | Can you tell me where it is?
    """,
    "turn_colour": """
        What color is it? | Which color is it?
        And its color? | And what color is it?
        What is its color? | What's its color?
        Which color does it have? | What color does it have?
        Tell me its color. | Name its color.
        Can you tell what color it is? | And which color is that?
    """,
    "two_which": """
        Which picture has {a}? | Which image has {a}?
        In which picture is there {a}? | In which image do you see {a}?
        Is {a} in the first or the second picture? | Is there {a} in the first or in the second image?
        Which image shows {a}? | Which picture shows {a}?
        Where do you see {a}, in the first or the second picture? | Where is {a}, in the first or the second image?
        Which of the two pictures contains {a}? | Which of the two images shows {a}?
    """,
    "two_count": """
        Which picture has more things? | Which image has more things?
        Which picture shows more objects? | Which image shows more objects?
        Has the first or the second picture more things? | Has the first or the second image more objects?
        Are more things in the first or the second picture? | Are more objects in the first or the second image?
        Which of the two pictures has more objects? | Which of the two images has more things?
        Which image contains more things? | Which picture contains more objects?
    """,
    "two_both": """
        Is there {a} in both pictures? | Is there {a} in both images?
        Do both pictures show {a}? | Do both images show {a}?
        Do you see {a} in both pictures? | Can you see {a} in both pictures?
        Does each picture have {a}? | Does each image have {a}?
        Is {a} in both images? | Is {a} in both of the pictures?
        Tell me if both pictures have {a}. | Tell me whether both images show {a}.
    """,
    "two_one": """
        What is in the {nth} picture? | What is in the {nth} image?
        Describe the {nth} picture. | Describe the {nth} image.
        What do you see in the {nth} picture? | What can you see in the {nth} image?
        What does the {nth} image show? | What does the {nth} picture show?
        Tell me what is in the {nth} picture. | Tell me what the {nth} image shows.
        List everything in the {nth} image. | List all the things in the {nth} picture.
    """,
    "talk_can": """
        What can you do? | What are you able to do?
        How can you help me? | How could you help me?
        What can I ask you? | What may I ask you?
        What do you do? | What is it that you do?
        What are you good at? | What are you for?
        Tell me what you can do. | Can you tell me what you can do?
        What kind of questions can you answer? | Which questions can you answer?
    """,
    "talk_who": """
        Who are you? | Who is this?
        What are you? | What kind of thing are you?
        What is your name? | What's your name?
        Tell me about yourself. | Can you tell me about yourself?
        Are you a robot? | Are you a person?
        Do you have a name? | What do I call you?
    """,
    "talk_hello": """
        Hello! | Hello there!
        Hi. | Hi there.
        Good morning! | Good evening!
        Hey! | Hey there!
        Hello, how are you? | Hi, how are you?
        How are you? | How are you today?
    """,
    "talk_thanks": """
        Thank you! | Thank you very much!
        Thanks. | Thanks a lot.
        Great, thank you. | Great, thanks.
        That is right, thanks! | That's right, thank you!
        Good answer. | Good work.
        Well done! | Very good!
    """,
    "talk_bye": """
        Goodbye! | Goodbye for now!
        Bye. | Bye bye.
        See you later! | See you!
        I have to go. | I have to go now.
        Good night! | Have a good night!
        That is all, bye! | That's all, goodbye!
    """,
    "talk_none": """
        What is in the picture? | What is in the image?
        Describe the picture. | Describe this image.
        How many things are there? | How many objects are there?
        What color is the circle? | Which color is the square?
        Is there a cat in the picture? | Do you see a dog in the image?
        What do you see? | What can you see?
    """,
}


def _parse(block: str) -> tuple[list[str], list[str]]:
    pairs = [line.strip().split(" | ") for line in block.strip().splitlines()]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


SEEN: dict[str, list[str]] = {}
HELD: dict[str, list[str]] = {}
for _kind, _block in _PAIRS.items():
    SEEN[_kind], HELD[_kind] = _parse(_block)

PREFIXES: tuple[str, ...] = (
    "",
    "",
    "",
    "",
    "",
    "",
    "Hi, ",
    "Hello! ",
    "Please tell me: ",
    "Can you help me? ",
    "Look at this. ",
    "Now, ",
    "And ",
    "Okay, ",
    "Hey, ",
    "Question: ",
    "I wonder: ",
    "One more question: ",
    "So ",
)
"""Said before a question in training, so that a greeting does not throw the model off."""
