"""The phrases of the synthetic support conversations, of customers, agents and summaries.

In PROBLEMS, WISHES, ATTEMPTED_FIXES and DEADLINES, a key is the text of the summary, and the values are the words of
customers for it.
"""

# fmt: off

DEVICES = (
    "thermostat", "doorbell camera", "smart plug", "hub", "light strip", "air purifier", "robot vacuum", "door lock",
    "motion sensor", "kitchen speaker", "garden camera", "radiator valve", "smoke alarm", "window sensor",
    "ceiling lamp", "leak detector", "garage opener", "blind motor", "pet feeder", "baby monitor", "heated blanket",
    "sprinkler timer", "desk lamp", "weather station", "fan", "humidifier",
)
TIMES = ("Monday", "Tuesday", "last week", "the 3rd", "the 19th", "March", "yesterday", "the weekend")
DAYS = ("Tuesday", "Thursday", "Friday", "Saturday", "Sunday")
LIGHTS = ("red", "orange", "blue", "purple")

PROBLEMS: dict[str, dict[str, tuple[str, ...]]] = {
    "arrival": {
        "broken on arrival": (
            "the {device} came with a crack right across the front",
            "when I opened the box the {device} was in two pieces",
            "my new {device} is smashed on one side, straight out of the parcel",
            "the {device} rattles and a corner has come off, and I only just unpacked it",
        ),
        "wrong colour": (
            "I ordered the {device} in white and this one is black", "the {device} is grey, the picture showed brass",
            "you sent me a green {device}, I had chosen silver",
            "the {device} is fine but it is not the colour I picked",
        ),
        "wrong product": (
            "I bought a {device} and in the parcel was a {other}",
            "instead of the {device} there is a {other} in the box",
            "this is a {other}, and what I paid for is a {device}",
            "somebody packed a {other} where my {device} should be",
        ),
        "parts missing": (
            "there are no screws in the box of the {device}", "the {device} came without its cable",
            "half of what the {device} needs to be put up is not in the carton",
            "no bracket with the {device}, though the list says there is one",
        ),
        "looks used": (
            "the {device} has scratches and somebody else's dust on it",
            "the seal on the {device} was open and it is not clean",
            "I paid for a new {device} and got one that has been used before",
            "there are fingerprints and tape on the {device}",
        ),
    },
    "delivery": {
        "parcel not arrived": (
            "my {device} should be here by now and is not", "I am still waiting for the {device}",
            "no sign of the {device} so far", "the {device} I ordered has not come",
        ),
        "marked delivered, not received": (
            "it says the {device} was handed over, but nobody gave me anything",
            "according to the courier I have the {device}; I do not",
            "the page claims that my {device} has been delivered and there is no parcel anywhere",
            "the driver signed for the {device} himself, it seems, I never got it",
        ),
        "tracking stuck since {when}": (
            "the tracking of the {device} has not moved since {when}",
            "since {when} the page says nothing new about my {device}",
            "my {device} sits in some depot since {when}",
            "nothing happens with the {device} any more, the last scan is from {when}",
        ),
        "sent to an old address": (
            "the {device} is on its way to the flat I left", "you shipped the {device} to where I used to live",
            "I moved, and the {device} went to the house before this one",
            "the label of the {device} has my former street on it",
        ),
    },
    "fault": {
        "no power": (
            "the {device} will not turn on any more", "the {device} is dead, no light, nothing",
            "I press the button and the {device} stays off", "nothing happens when I plug in the {device}",
        ),
        "loses the connection": (
            "the {device} drops off the Wi-Fi every evening", "every few hours the {device} is offline",
            "the {device} keeps saying that it can't find the network", "my {device} forgets the router all the time",
        ),
        "battery drains": (
            "I have to charge the {device} every other day", "a new battery lasts two days in the {device}",
            "the {device} is empty again by the next morning", "the {device} eats its batteries",
        ),
        "shows error {code}": (
            "the {device} shows {code} and nothing else", "{code} is all that the {device} says",
            "there is an {code} on the {device} since the weekend", "what does {code} mean? it stands on my {device}",
        ),
        "light stays {light}": (
            "the {device} glows {light} all day", "the lamp on the {device} is {light} and never goes off",
            "all I see on the {device} is {light}", "it is {light}, it has been {light} since morning, my {device}",
        ),
        "loud noise": (
            "the {device} hums so loudly that I can't sleep", "there is a rattle in the {device} that gets worse",
            "the {device} squeaks like a mouse", "my {device} whistles whenever it runs",
        ),
        "fails since the update": (
            "after the new version came the {device} does nothing it should",
            "you changed the software and now my {device} is useless",
            "the {device} was fine until it updated itself", "ever since the last update the {device} ignores me",
        ),
        "does not pair": (
            "the app can't see the {device}", "I can't get the {device} into the app",
            "the {device} blinks and blinks and my phone finds nothing",
            "adding the {device} ends in a spinning wheel each time",
        ),
    },
    "money": {
        "charged twice": (
            "the {device} is on my statement two times", "you took the money for the {device} again after I had paid",
            "I see two payments for one {device}", "for a single {device} I was billed double",
        ),
        "charged {amount} too much": (
            "for the {device} you took {amount} more than the price", "my bill for the {device} is off by {amount}",
            "I was asked {amount} too much for the {device}", "the {device} cost me {amount} above what the page said",
        ),
        "refund not received": (
            "I sent the {device} back and have seen no money",
            "the {device} is with you again since {when}, the payment is not back",
            "where is what I paid for the {device} that I returned",
            "you have the {device}, I still don't have the money",
        ),
        "discount not applied": (
            "the voucher for the {device} was ignored", "I typed in the code and paid the full price for the {device}",
            "the ten percent on the {device} were never taken off",
            "the {device} was on offer and I was charged as if it was not",
        ),
    },
}
WISHES: dict[str, tuple[str, ...]] = {
    "a refund": (
        "please give me my money back", "I would like to be paid back", "I don't want another one, just the money",
        "send the payment back to my card", "all I want now is my money",
    ),
    "a replacement": (
        "please send me another one", "I would like a new one instead", "swap it for one that is right",
        "just exchange it", "a fresh one in the post would do",
    ),
    "a repair": (
        "can somebody mend it", "I would rather have it fixed than swapped", "please have it repaired",
        "tell me where I can send it to be put right", "I want it to be fixed, it was a present",
    ),
    "a call": (
        "please ring me up", "I would rather talk to somebody on the phone", "can one of you phone me",
        "give me a ring and we go through it", "writing gets us nowhere, please call",
    ),
    "help by chat": (
        "tell me what to press", "walk me through it here", "I need somebody to guide me, step by step",
        "just explain here what I have to do", "tell me how to get it going again",
    ),
    "a return label": (
        "send me the sticker for the parcel", "I need something to put on the box to send it back",
        "how do I post it back without paying? I need the label", "mail me the label and it goes back",
        "I will take it to the post office as soon as I have your label",
    ),
    "part of the price back": (
        "I will keep it if you give me something back", "take some euros off and I keep it",
        "a few euros back and we are fine", "I can live with it for a lower price",
        "let me have a discount and I keep it",
    ),
    "a delivery date": (
        "just tell me which day it comes", "when will it be here", "I want to know the day",
        "tell me when to stay at home for it", "which day do I have to wait in",
    ),
    "cancellation": (
        "then I don't want it any more, call the order off", "please stop the order",
        "forget it, I take the order back",
        "cancel it", "I have bought one elsewhere, please cancel",
    ),
    "an explanation": (
        "how can that be", "I want to understand how this happened", "please tell me why",
        "can you explain that to me", "somebody should tell me the reason",
    ),
}
WISHES_BY_PROBLEM = {
    "arrival": ("a refund", "a replacement", "a return label", "part of the price back"),
    "delivery": ("a refund", "a replacement", "a delivery date", "cancellation"),
    "fault": ("a refund", "a replacement", "a repair", "a call", "help by chat"),
    "money": ("a refund", "a call", "an explanation"),
}
CHANGED_WISHES = (
    "first I thought of {other}, but no: {wish}", "I do not want {other}, {wish}",
    "your colleague offered {other}, I said no. So {wish}", "not {other}, thanks, {wish}",
)
ATTEMPTED_FIXES: dict[str, tuple[str, ...]] = {
    "a restart": (
        "I switched it off and on again", "I took the plug out and put it back",
        "turning it off and on does not help",
    ),
    "a reset": (
        "I held the button for ten seconds as the manual says", "I put it back to how it left the factory",
        "I wiped it and began anew",
    ),
    "new batteries": (
        "I put in fresh batteries", "with other batteries it is the same", "the batteries are new, I changed them",
    ),
    "another cable": ("I used the cable of a friend", "with a different cable it is no better", "I swapped the cable"),
    "another room": (
        "I carried it next door and it is the same there", "it does that in the hall too",
        "moving it to the kitchen changed nothing",
    ),
}
DEADLINES: dict[str, tuple[str, ...]] = {
    "away from {day}": ("I leave on {day}", "from {day} on I am not here", "we are off on holiday on {day}"),
    "needed by {day}": ("I must have this settled by {day}", "it is a present for {day}", "we need it on {day}"),
    "child or patient at home": (
        "there is a baby in the house", "my mother is ill and depends on it", "I have small children here",
    ),
}
ASIDES = (
    "the {other} that I have from you works well", "the {other} from order {order} is fine, this is not about that one",
    "last year there was something with a {other}, that is settled",
    "I also asked about a {other}, you answered that already",
    "by the way, the {other} is great", "order {order} was another matter and is closed",
)
ORDERS = (
    "it is order {order}", "the number is {order}", "order {order}", "that was order no. {order}",
    "you will find it under {order}", "my order number is {order}",
)
NO_ORDER = (
    "I don't have the number here", "no idea, I threw the papers away", "I can't find the number",
    "I bought it in a shop",
)
HELLOS = (
    "Hello?", "Hi, is anybody there?", "Good morning.", "Hi, I have a question.", "Hey, can you help me?",
    "Good evening, me again.",
)
WELCOMES = (
    "Hello, how can I help?", "Good to see you. What is it about?", "Hi, I am here. Tell me.",
    "Welcome, what can I do?",
)
ORDER_QUESTIONS = (
    "Which order is that?", "Sorry to hear that. Do you have the order number?", "What is your order number?",
    "I see. Under which order?",
)
WISH_QUESTIONS = (
    "Thank you. What shall we do?", "Thanks. How can I make up for it?", "Got it. What would you like?",
    "And what would help you most?",
)
GREETINGS = ("Hello,", "Dear team,", "Hi there,", "Good morning,", "To whom it may concern,")
CHATTER = (
    "I have been a customer for years and never had to write.", "I tried to phone you first, without luck.",
    "I hope that I am right here.", "Thanks in advance for reading this.", "Normally I am happy with your shop.",
    "This is my second message.", "I am writing for my neighbour too.",
)
SIGN_OFFS = (
    "Regards, T. Aspen", "Thanks, Maria", "Best, Jon Weller", "Greetings, R. Okoro", "Kind regards, Lena", "Bye, Sam",
)
