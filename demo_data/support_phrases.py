"""The phrases of the synthetic support desk: messages to each of its twelve queues.

Notation, expanded by `support_tickets.py`: `[a|b|c]` picks one branch (branches may nest, an empty branch is allowed)
and `<name>` expands an entry of SLOTS. Each queue has

    core      messages that belong to the queue
    resolved  the same matter mentioned as already settled, which is never a reason to route there
    topic     the matter as a noun phrase, for "this is not about ..." and "... can wait"

The shop, its products and its customers do not exist.
"""

from dataclasses import dataclass

# fmt: off


@dataclass(frozen=True)
class Queue:
    """A queue of the support desk, with the phrases of its messages."""

    description: str
    core: tuple[str, ...]
    resolved: tuple[str, ...]
    topic: tuple[str, ...]


SLOTS: dict[str, tuple[str, ...]] = {
    "device": (
        "thermostat", "doorbell camera", "smart plug", "hub", "light strip", "air purifier", "robot vacuum",
        "door lock", "motion sensor", "kitchen speaker", "garden camera", "radiator valve", "smoke alarm",
        "window sensor", "ceiling lamp", "water leak detector",
    ),
    "other_device": (
        "garage opener", "blind motor", "pet feeder", "baby monitor", "heated blanket", "sprinkler timer",
        "desk lamp", "weather station", "fan", "humidifier",
    ),
    "plan": ("Basic", "Plus", "Family", "Premium", "cloud storage", "video history", "monitoring"),
    "days": (
        "two days", "three days", "four days", "five days", "a week", "ten days", "two weeks", "nearly a month",
        "over a week", "more than three weeks", "ages",
    ),
    "when": (
        "yesterday", "this morning", "last night", "on Monday", "on Friday", "last week", "a week ago",
        "on the 3rd", "on the 19th", "two weeks ago", "over the weekend", "in March", "last month",
    ),
    "amount": (
        "$12.99", "$29", "$49.90", "$89", "$120", "$7.50", "$240", "34 euros", "19.99", "65 pounds", "$310.40",
        "about fifty dollars", "a hundred and five dollars",
    ),
    "order": (
        "order 48213", "order 77120", "order no. 90551", "#31877", "order 10442", "my last order",
        "the order from <when>", "order 65009", "#22914", "order A-5518",
    ),
    "colour": ("white", "black", "grey", "brass", "green", "silver"),
    "room": ("hallway", "kitchen", "bedroom", "basement", "nursery", "garage", "attic", "office"),
    "person": ("my husband", "my wife", "my daughter", "my flatmate", "my mother", "a colleague", "my neighbour"),
    "light": ("orange", "red", "blue", "purple", "amber"),
    "please": ("please", "could you", "can you", "would you kindly", "I need you to", "I'd like you to"),
}

QUEUES: dict[str, Queue] = {
    "billing_dispute": Queue(
        "A charge or invoice that the customer believes is wrong, double or unknown",
        (
            "[I was|we were|I have been] charged [twice|two times|double|three times] for [the <device>|<order>|the same <device>]",
            "there is [a|some] [charge|payment|debit] of <amount> [on my card|on my statement|from you] that I [do not recognise|never agreed to|can't explain]",
            "[my|the] invoice [says|shows|lists] <amount> but [the price on the site was lower|I was quoted less|that is not what I agreed to]",
            "why [did you take|have you taken|was I billed] <amount> [<when>|again|for nothing]",
            "[the|your] discount code was [accepted|applied] [and yet|but still] I paid the full [price|amount] for the <device>",
            "you [billed|charged] me for the <plan> plan [although|even though] I [never had it|was on a free trial|stopped using it <when>]",
            "[the total|the sum|what I paid] for <order> is [wrong|off by <amount>|too high]",
            "[my bank|my card company] shows [an extra|a second|an unexplained] <amount> with your name on it",
            "I want to [dispute|contest|query] [the <amount> you took|a charge from <when>|the last invoice]",
            "[VAT|sales tax|shipping] was [added|counted] [twice|wrongly] on [the bill|my invoice|the receipt] for the <device>",
            "my account was debited <when> and I [bought nothing|ordered nothing|did not buy a thing] [then|that week|]",
        ),
        (
            "the double charge [from <when>|] was [corrected|sorted out] [already|by your colleague|]",
            "[the wrong invoice|the billing mix-up] has been fixed [already|<when>|], thanks",
            "I understand the <amount> charge now",
        ),
        ("the invoice", "a charge on my card", "billing", "the price I paid"),
    ),
    "refund_status": Queue(
        "Money that was promised back and has not arrived, or a question when it will",
        (
            "[I sent|I returned|I shipped] the <device> back <days> ago and [still no money|the money has not arrived|nothing has been paid back]",
            "[when|how soon] [will I get|do I get|can I expect] my money back for [<order>|the <device>|the <device> you took back]",
            "you [promised|approved|confirmed] [a refund|my refund|to refund me] <when> [but|and] [I see nothing on my account|it isn't there|nothing has come through]",
            "[where is|what happened to|any news on] [my refund|the refund|the <amount> you owe me]",
            "my [refund|reimbursement] has been [pending|processing|on its way] for <days>",
            "the [warehouse|parcel service] says you [received|have] my [return|<device>] [since <when>|] [so|and so] where is the [money|<amount>]",
            "only [part|half|some] of the [refund|money] [arrived|came back|was paid out]",
            "how long does it take [until|before] [a refund|the reimbursement] [shows up|lands|is visible] [on a card|in my bank|]",
            "I got [an email|a note|a mail] that <amount> was [sent back|credited] to me [but|yet] my [bank|card] [has nothing|shows nothing]",
            "I was told [five|ten|seven] [working days|business days] for [the money|the refund] and it's been <days>",
        ),
        (
            "[my|the] refund [arrived|came through|is on my account] [<when>|already|], thank you",
            "the <amount> you owed me [is|are] back on my card",
            "I have [received|got] the money back for the <device> [already|]",
        ),
        ("a refund", "my refund", "getting money back", "the reimbursement"),
    ),
    "return_exchange": Queue(
        "The customer wants to send a product back or swap it for another",
        (
            "[I'd like to|I want to|can I|how do I] [send back|return|give back] the <device> [I bought <when>|from <order>|]",
            "[can I|is it possible to|I would like to] [swap|exchange|change] [the <device>|my <device>] for [the <colour> one|a <other_device>|another model|a bigger one]",
            "[please send|I need|where do I get] [me a|a] [return label|shipping label for a return|return form]",
            "the <device> is [not what I need|nothing for us|too big for the <room>|simply not for me], [what now|how can I give it back|how do I hand it back]",
            "[what is|how long is] [the|your] [return period|return policy|window for returns] [for a <device>|]",
            "I [changed my mind|have changed my mind] about the <device> [and it is unopened|, the box is still sealed|]",
            "<person> already [has|bought] [one|a <device>] so I [don't need mine|want to hand mine back|would rather swap it]",
            "I [ordered|picked|bought] the [wrong|<colour>] [model|colour|one] by mistake [and want the <colour> one|, can it be changed|, can I trade it in]",
            "do I [have to|need to] [pay|cover] [postage|shipping] [if I send the <device> back|when I return the <device>]",
            "[can|could] [somebody|a courier] [pick up|collect] the <device> [that I am sending back|I don't want to keep|I want to return]",
        ),
        (
            "I [have already sent|sent|posted] the <device> back, so that is done",
            "the [exchange|swap] [went well|worked out fine], thank you",
            "I decided to keep the <device> [after all|]",
        ),
        ("returning the <device>", "sending anything back", "an exchange", "a return label"),
    ),
    "delivery_delay": Queue(
        "A parcel that is late, lost or cannot be tracked",
        (
            "[<order>|my <device>|the <device>] [still hasn't arrived|has not come|isn't here] [after <days>|and it has been <days>|]",
            "[where is|what has happened to|can you find] my [parcel|package|<device>]",
            "[the tracking|the tracking page|the courier's site] [has not moved|has shown the same thing|has said 'in transit'] for <days>",
            "it says delivered [<when>|] but [there is nothing at my door|nobody brought anything|we got no parcel]",
            "[when|on which day] [will|is] [<order>|the <device>|my parcel] [arrive|be delivered|get here]",
            "[you promised|the site promised|I paid for] [next-day delivery|express shipping|delivery by Friday] and I'm still [waiting|looking at an empty doorstep]",
            "the [driver|courier] [never showed up|did not ring|left no card] [<when>|] and [I was home all day|I took the day off for it]",
            "the tracking number [doesn't work|is not recognised|leads nowhere]",
            "I have been [waiting|looking out] for [the <device>|<order>] [since <when>|for <days>]",
            "[has|did] [<order>|my <device>] [been shipped|leave the warehouse|left the warehouse] [yet|at all]",
            "the parcel [seems to be|must be] [lost|stuck] [somewhere|in a depot|with the courier] [since <when>|]",
        ),
        (
            "the [parcel|package|<device>] [arrived|came|turned up] [<when>|on time|in the end]",
            "the late delivery [is forgiven|no longer matters], it came <when>",
            "tracking works now",
        ),
        ("the delivery", "shipping", "where my parcel is", "the courier"),
    ),
    "damaged_item": Queue(
        "A delivery that came broken, incomplete or with the wrong article inside",
        (
            "the <device> [arrived|came|was delivered] [broken|cracked|smashed|with a dent|in pieces]",
            "[when I opened|on opening|I opened] the [box|parcel] [and|] the <device> [was scratched|had a crack|was shattered|was bent]",
            "[you sent|I got|I received|there was] a <other_device> [instead of|not] [the|a] <device> [in the box|]",
            "[the charger|the mounting plate|one screw bag|the manual and the cable|the power supply] [was missing from the box|is not in the box|was not included]",
            "I ordered [two|three] and [only one|just one] <device> was in the [parcel|box|package]",
            "the [packaging|box] was [soaked|crushed|torn open] and so [is|was] the <device>",
            "the <device> [I unpacked|that came <when>] [is clearly used|has someone's fingerprints on it|was opened before]",
            "[glass|the cover|the lens|the housing] of the [new|brand new|] <device> [is cracked|is broken] straight out of the box",
            "wrong [colour|size|model] [was delivered|in the parcel|came]: [I asked for|I ordered] <colour>",
            "half of [<order>|what I bought] is missing [from the delivery|in the parcel|]",
        ),
        (
            "the [replacement for the|] cracked <device> [has been replaced|was replaced|came <when>], all fine",
            "the missing [cable|screws|charger] [turned up|came <when>]",
            "the box was a bit dented but the <device> inside is [perfect|fine]",
        ),
        ("a damaged parcel", "a broken delivery", "missing parts", "the wrong article"),
    ),
    "device_setup": Queue(
        "Help with installing, pairing or connecting a product for the first time",
        (
            "[how do I|how can I|I don't know how to] [connect|pair|link] [the|my new] <device> [to the wifi|with the hub|to my phone|]",
            "the [app|hub] [can't find|does not find|doesn't see] the [new <device>|<device> I just unpacked|<device> I am adding]",
            "[setting up|installing|adding] the <device> [stops|fails|hangs] at [step three|the QR code|the wifi password|eighty percent]",
            "[which wire goes where|where do the wires go|which way round does it go] [on|when I mount] the <device>",
            "[is there|do you have] [a guide|a video|instructions] for [mounting|installing|the first start of] the <device>",
            "I [just bought|just unpacked|got] a <device> and [cannot get it going|need help with the first steps|do not know where to start]",
            "[can|does] the <device> [join|use] [a 5 GHz network|a guest network|a mesh network] and how [do I do that|is that done]",
            "what [do I press|is the button] to [put|bring] the <device> into pairing mode",
            "I moved [house|to a new flat] and [want|need] to [install|pair] the <device> [again|with the new router|from scratch]",
            "the QR code [on|under] the <device> [is not accepted|won't scan] [when adding it|during installation|]",
        ),
        (
            "the <device> is [installed|paired|connected] [now|and online|]",
            "setting it up was [easy|quick]",
            "I got the [pairing|installation] done [<when>|with your video]",
        ),
        ("the installation", "setting up the <device>", "pairing", "wiring"),
    ),
    "device_fault": Queue(
        "A product that used to work and now fails or misbehaves",
        (
            "my <device> [stopped working|died|went dead|gave up] [<when>|after <days>|]",
            "the <device> [keeps|won't stop] [blinking <light>|beeping|restarting|switching itself off]",
            "[since|ever since] the [last update|update <when>|power cut] the <device> [is offline|does nothing|acts up|drops out]",
            "the <device> [worked fine|was fine|was great] for [a year|months|<days>] and [now|suddenly] [it does not react|it won't turn on|it is silent]",
            "the battery of the <device> [is empty after a day|drains overnight|doesn't hold charge any more]",
            "[the little|a] <light> light [keeps|stays] on [no matter what I do|whatever I press|even after a reset]",
            "the <device> in the <room> [loses|drops] [its connection|the wifi] [every night|every few hours|all the time]",
            "it makes a [grinding|clicking|humming] [noise|sound] [when it runs|at night|] and [then stops|gets hot]",
            "the <device> [shows|displays] [error E4|error 17|a wrong temperature|the wrong time]",
            "[nothing happens|there is no reaction] when I [press|use] the <device> [although it did until <when>|any more]",
            "[after|even after] a factory reset the <device> [still|again] [freezes|hangs|fails]",
        ),
        (
            "the <device> [works again|is working fine again] [since the update|since <when>|]",
            "the blinking [stopped|has stopped] by itself",
            "[a reset|new batteries] fixed the <device>",
        ),
        ("a defect", "the <device> itself", "a technical fault", "the blinking light"),
    ),
    "account_access": Queue(
        "Login, password, locked account or verification code trouble",
        (
            "I [can't|cannot|am unable to] [log in|sign in|get into my account] [since <when>|any more|]",
            "[my password|the password] [is not accepted|doesn't work|is refused] [in the app|on the website|]",
            "the [reset mail|password email|reset link] [never comes|does not arrive|has expired]",
            "[my|the] account [is locked|was locked|has been blocked] [after too many tries|<when>|for no reason]",
            "the [six digit|verification|security] code [isn't sent|never arrives|is wrong every time]",
            "I [lost|changed|broke] my [phone|number] and [can't get|don't get] the [codes|login codes]",
            "[somebody|someone] [logged into|got into|is using] my account [from another country|<when>|]",
            "[how do I|I want to|help me] [reset|change|recover] [my|the] password",
            "the app [throws me out|logs me out|signs me out] [every day|each time I open it|again and again]",
            "it says [unknown user|my email does not exist|wrong credentials] when I [sign in|try to enter]",
        ),
        (
            "I [can log in|am able to sign in] again [since <when>|]",
            "the password [reset worked|is sorted]",
            "my account is [unlocked|open again], thanks",
        ),
        ("my password", "logging in", "the login", "the verification code"),
    ),
    "plan_change": Queue(
        "Starting, upgrading, downgrading, pausing or ending a subscription",
        (
            "[I want to|I'd like to|please help me] [cancel|end|stop] [my|the] <plan> [plan|subscription|membership]",
            "[can I|how do I|I would like to] [upgrade|switch|move up] [from Basic|] to [the|] <plan> [plan|]",
            "[downgrade|move|switch] [me|us|my account] [to the cheaper plan|back to Basic|down to Plus]",
            "[we are|I am] away for <days>, can the [subscription|<plan> plan] be [paused|put on hold]",
            "[add|I want to add] [another camera|two more users|<person>] to [my|our] <plan> plan",
            "[don't|please do not|do not] renew [my|the] <plan> [subscription|plan|membership] [when it ends|next month|]",
            "what [happens|will happen] to [my recordings|my videos] if I [leave|end|drop] the <plan> plan",
            "[switch|change] [my|our] [plan|subscription] from monthly to yearly [please|]",
            "I no longer [need|use] the <plan> [plan|subscription] [from next month|since <when>|]",
            "how do I [start|book|activate] the <plan> plan [for the <device>|]",
        ),
        (
            "[my|the] <plan> plan is [cancelled|upgraded] [as I asked|now|], thanks",
            "switching to the <plan> plan worked",
            "I will keep the <plan> subscription",
        ),
        ("my subscription", "the <plan> plan", "cancelling the plan", "an upgrade"),
    ),
    "account_details": Queue(
        "Updating an address, name, email, phone number or payment method",
        (
            "[I moved|we moved|I have moved] [<when>|], [please|can you] [update|change] [my|our] address",
            "[please|can you|I need to] [correct|change] the [spelling of my name|name on my account|surname on the account]",
            "[I have|there is] a new [card|bank account], where [do I|can I] [enter|save|store] it",
            "my [email|email address|phone number] [has changed|is a new one], [update it please|how do I change it|please use <email>]",
            "[the|my] [card on file|stored card] [expires|has expired], I want to [replace it|use another one|add the new one]",
            "[put|please put] [my company|the company name|our VAT number] [on the account|into my profile]",
            "[ship|send] [<order>|my next order] to [my office|another address|<person>] [instead|please]",
            "I [got married|got divorced] and [my name is different now|need my new name in the profile]",
            "you [have|use] my old [address|street|number] [in your system|on file|], that [needs changing|is out of date]",
            "[transfer|move] the account [into <person>'s name|to <person>|from me to <person>]",
        ),
        (
            "[my|the] new address is [saved|in the profile] [already|]",
            "I [have updated|changed] the card on file [myself|]",
            "the name on the account is right now",
        ),
        ("my address", "the card on file", "my contact details", "my profile"),
    ),
    "product_question": Queue(
        "A question before buying: features, compatibility, stock or price",
        (
            "[does|will] the <device> work with [a <other_device>|other brands|an old router|gas heating]",
            "[is|when is] the <colour> <device> [in stock again|available|back in stock]",
            "[before I buy|before ordering], [does|can] the <device> [run without internet|be used outdoors|record sound|see in the dark]",
            "[what is the difference|how do I choose] between the <device> and the [<device> Pro|older one|mini version]",
            "[how many|what number of] [sensors|cameras|lamps] can [one|a] hub [handle|take]",
            "how [long|far|loud|big] is [the battery life|the range|the siren|the screen] of the <device>",
            "[do you offer|is there] [a student price|a discount for two|a bundle] [on|with] the <device>",
            "[I am thinking of buying|I'm looking at|we consider] [a|the] <device>, is it [waterproof|safe for pets|good for a <room>]",
            "[do you sell|have you got] [spare filters|extra brackets|longer cables] for the <device>",
            "[would|is] the <device> [fit|be right|suitable] for [a rented flat|a <room> with no window|a wooden door]",
        ),
        (
            "[I found|found] the answer about the <device> on your site",
            "thanks for the advice on the <device>, I [bought|ordered] it",
            "your colleague told me the <device> is [waterproof|in stock]",
        ),
        ("buying another <device>", "features", "the <colour> version", "prices"),
    ),
    "privacy_request": Queue(
        "Deleting or exporting personal data, consent, or stopping marketing messages",
        (
            "[please|I want you to|I ask you to] [delete|erase|remove] [all my data|everything you have on me|my account and all data]",
            "[stop|please stop] [sending me|mailing me] [newsletters|offers|marketing|promotions]",
            "[what|which] [data|information] do you [store|hold|keep] about me",
            "[send me|I want|I request] a copy of [my data|all data you hold on me|my personal information]",
            "[who|which companies] [can see|gets to see] the [videos|recordings|pictures] from my <device>",
            "I [withdraw|take back] my consent [to analytics|to the use of my voice|to profiling|]",
            "[unsubscribe|take] me [from|off] [the mailing list|all mails|your list]",
            "[are|do] [my recordings|the camera's videos] [kept|stay] on your servers [and for how long|after I erase them|]",
            "[under GDPR|by law] I [may ask|am entitled] to [have my data erased|see my file]",
            "I get [adverts|text messages with offers] from you [though|although] I never [agreed|signed up]",
        ),
        (
            "[my|the] data export [arrived|came <when>], thanks",
            "the newsletters have stopped",
            "you already [deleted|erased] my old recordings",
        ),
        ("my data", "the newsletter", "privacy", "consent"),
    ),
}

GREETINGS = (
    "Hi,", "Hello,", "Hey", "Good morning,", "Dear team,", "Hello there,", "hi again", "Good evening,",
    "To whom it may concern,", "Hi support,",
)
NOISE = (
    "hope you are well", "sorry to bother you", "I know you are busy", "long-time customer here",
    "I tried your chat but it was closed", "this is the second time I write", "I searched the help pages first",
    "I really like your products", "not sure if this is the right place", "I am writing from my phone",
    "your hotline kept me on hold for half an hour", "quick one", "I hope somebody reads this",
)
SIGN_OFFS = (
    "Thanks", "Thank you!", "Best regards", "Kind regards, <signature>", "cheers", "Many thanks in advance",
    "Looking forward to your answer", "Thanks, <signature>", "Please call me on <phone>", "Reach me at <email>",
    "<signature>",
)
SIGNATURES = (
    "Amira", "Jonas", "T. Okafor", "Li Wei", "Carmen R.", "Pavel", "Mrs Hughes", "Dev", "Sanne", "Ibrahim K.",
    "Lucia", "Noah", "Yuki", "Marta", "G. Rossi",
)
