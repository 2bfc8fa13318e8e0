"""The phrases of the synthetic replies: questions with their answers, and sentences that break the company style.

TOPICS are (questions, answers); each answer fits each question of its topic.
"""

# fmt: off

DEVICES = (
    "thermostat", "doorbell camera", "smart plug", "hub", "light strip", "air purifier", "robot vacuum", "door lock",
    "motion sensor", "kitchen speaker", "garden camera", "radiator valve", "smoke alarm", "window sensor",
    "ceiling lamp", "leak detector", "garage opener", "blind motor", "pet feeder", "baby monitor", "heated blanket",
    "desk lamp", "fan",
)
TOPICS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "how long is the warranty on the {device}?", "is my {device} still covered after a year?",
            "what if the {device} breaks in eighteen months?",
        ),
        (
            "The {device} has a warranty of two years.", "It is covered for two years from the day of purchase.",
            "You have two years of warranty on it.",
        ),
    ),
    (
        (
            "can I send the {device} back?", "I don't like the {device}, may I return it?",
            "until when can I return a {device}?",
        ),
        (
            "You can return the {device} within thirty days.",
            "Returns are open for thirty days, in the original box.", "Send it back within thirty days of delivery.",
        ),
    ),
    (
        (
            "how long does delivery of the {device} take?", "when does a {device} arrive if I order now?",
            "how many days until the {device} is here?",
        ),
        (
            "Delivery usually takes three to five working days.",
            "The {device} mostly arrives within five working days.",
            "Parcels are on the way for three to five working days.",
        ),
    ),
    (
        (
            "does the {device} work without the hub?", "do I need a hub for the {device}?",
            "is the {device} any use by itself?",
        ),
        (
            "The {device} works without a hub, over Wi-Fi.", "No hub is needed, Wi-Fi is enough.",
            "It needs Wi-Fi and no hub.",
        ),
    ),
    (
        (
            "how do I reset the {device}?", "the {device} hangs, how do I start over?",
            "how can I put the {device} back to factory state?",
        ),
        (
            "Hold the button of the {device} for ten seconds.",
            "Press the button for ten seconds, until the light blinks.",
            "A press of ten seconds on the button resets it.",
        ),
    ),
    (
        (
            "which batteries does the {device} take?", "what do I put into the {device}?",
            "can I use rechargeable batteries in the {device}?",
        ),
        (
            "The {device} takes two AA batteries, rechargeable ones too.", "Two AA batteries, of any kind.",
            "It runs on two AA cells; rechargeable ones are fine.",
        ),
    ),
    (
        (
            "can I pay for the {device} in parts?", "is there a way to pay the {device} by the month?",
            "do you offer instalments for a {device}?",
        ),
        (
            "You can pay it in three parts at the checkout.", "The checkout offers three monthly payments.",
            "Choose three payments at the checkout.",
        ),
    ),
    (
        (
            "where is the invoice for my {device}?", "I need a bill for the {device}, where do I get it?",
            "how do I download the receipt of the {device}?",
        ),
        (
            "The invoice is in your account, under Orders.", "You find it under Orders in your account.",
            "Open Orders in your account; the invoice is beside the {device}.",
        ),
    ),
    (
        (
            "how do I change my address for the {device}?", "I moved, can the {device} go to the new flat?",
            "can you send the {device} to another street?",
        ),
        (
            "Change the address under Account before the parcel leaves.",
            "As long as it has not left, you can change the address under Account.",
            "Under Account, Addresses, until the {device} is sent.",
        ),
    ),
    (
        ("is the {device} safe outdoors?", "can I hang the {device} in the rain?", "does the {device} stand water?"),
        (
            "The {device} is made for indoors.", "It is for rooms and does not stand rain.",
            "Please use it indoors, it is not sealed.",
        ),
    ),
    (
        (
            "can two people use the {device} in the app?", "how do I share the {device} with my wife?",
            "can my son control the {device} too?",
        ),
        (
            "Invite others in the app under Household.", "Up to five people can share it, under Household.",
            "Add them under Household in the app.",
        ),
    ),
    (
        (
            "does the {device} record what I say?", "who can see the data of my {device}?",
            "what do you store about the {device}?",
        ),
        (
            "The {device} stores its settings and no sound.", "Only settings are stored, and only in your account.",
            "It keeps its settings and records nothing.",
        ),
    ),
    (
        (
            "how do I cancel the plan for my {device}?", "I want to end the subscription of the {device}",
            "how can I stop paying monthly for the {device}?",
        ),
        (
            "You can end the plan under Account, Plans.", "Go to Account, Plans, and choose End.",
            "End it under Plans; it runs to the end of the month.",
        ),
    ),
    (
        (
            "which phones does the app of the {device} run on?", "my phone is old, will the {device} app work?",
            "what do I need for the {device} app?",
        ),
        (
            "The app needs Android 11 or iOS 16, or newer.", "Any phone with Android 11 or iOS 16 will do.",
            "It runs from Android 11 and iOS 16 on.",
        ),
    ),
    (
        (
            "do you have the {device} in black?", "is there another colour of the {device}?",
            "which colours does the {device} come in?",
        ),
        (
            "The {device} comes in white and in black.", "There is a white one and a black one.",
            "You can have it in white or black.",
        ),
    ),
    (
        ("how do I clean the {device}?", "may I use soap on the {device}?", "there is dust in the {device}, what now?"),
        (
            "Wipe it with a dry cloth, without soap.", "A dry cloth is best for the {device}.",
            "Please clean it dry, with a soft cloth.",
        ),
    ),
)
GREETINGS = ("Hello,", "Hi,", "Good morning,", "Dear team,", "Hey there,", "Good evening,")
CHATTER = (
    "I got one for my birthday.", "My neighbour told me about you.", "I have looked everywhere.", "We are moving soon.",
    "I am new to all of this.", "I wrote last week as well.", "It is for my mother.",
    "I am thinking of buying a second one.",
    "Your site did not help me.", "Just a short question.", "I could not reach you by phone.",
    "We have two of them by now.",
    "My husband wants to know.", "I am on the road and have little time.",
)
THANKS = ("Thanks!", "Thank you.", "Many thanks, Ina", "Best, R.", "Cheers", "Regards, Paul")
OPENERS = (
    "Thank you for asking.", "Thanks for your message.", "Good question, thank you.", "Happy to help.",
    "Thank you for writing to us.",
    "Thanks for getting in touch.", "Nice to hear from you.", "With pleasure.",
)
CLOSERS = (
    "Please write again if anything is unclear.", "Let me know if you need more.", "I hope this helps.",
    "Have a good day.",
    "I am here if you have another question.", "Feel free to ask for more.", "All the best with it.",
    "Tell me if that does not work, please.",
)
PROMISES = (
    "I promise that you will never have trouble with it.", "It will surely be all right, I guarantee it.",
    "You will certainly love it, my word on that.",
    "I guarantee that nothing can go wrong.", "We will always pay for everything, I promise.",
    "It is certain to work on the first day.",
    "You have my promise that it gets cheaper soon.", "I can assure you that it will last for ever.",
    "We will definitely send you a present too.",
    "I swear that the {device} never fails.",
)
RUDE = (
    "It is all in the manual, if anybody reads it.", "You could have found that yourself.",
    "I have no idea why people keep asking this.",
    "Next time look before you write.", "Honestly, that is obvious.", "Read our site first.",
    "As I have said a hundred times.",
    "I do not have all day.", "That is not so hard to see.", "What did you expect?",
)
EVASIONS = (
    "Your request is important to us.", "A colleague may look into it.", "There is a lot to say about the {device}.",
    "We take every question seriously.", "It depends on many things.", "Our team works hard every day.",
    "We have noted your message.",
    "Please be patient with us.", "We value you as a customer.", "Somebody will see to it some time.",
)
FILLER = (
    "Since the day we opened our first small shop, questions like yours have taught us a great deal.",
    "The {device} is among the products that our designers are proudest of, and there is a long story behind it.",
    "Before I come to the point, let me say a few words about how we work here.",
    "As you may know, we have just moved into a new and larger office, which keeps all of us rather busy.",
    "Many customers write to us every day, early as well as late, and we read each message with care.",
    "There are several ways to look at this, and I will try to put them into some order for you.",
    "By the way, our newsletter tells of such things every month, with pictures and with stories of other customers.",
    "It may also interest you that the {device} has been tested by a magazine, whose name I do not remember now.",
    "To be complete, I should add that other products of ours are made in much the same way and by the same people.",
    "When I was new here myself, I asked my colleagues the very same thing, and they laughed in a friendly way.",
)
