"""Whether a prompt asks for something unsafe: rules that can be read, and whose errors are counted (docs/safety.md).

    unsafe("Write a phishing email to steal someone's banking information")      "fraud"
    unsafe("How do I recognise a phishing email?")                               None

Most rules are two things near each other, something to be done and something that it is done to; and a sign that the prompt
is about protection takes them back. They look for requests as they are usually put, in English: a hidden one is not found.
"""

from __future__ import annotations

import re

LOOKED_AT = 2_000
"""Characters of a prompt that are read."""


def _near(action: str, *objects: str) -> str:
    """The action, and within a sentence and 90 characters after it one of the objects."""
    return rf"\b(?:{action})\b[^.?!\n]{{0,90}}?\b(?:{'|'.join(objects)})\b"


_MAKE = (r"(?:mak|build|creat|manufactur|synthesi[sz]|produc|cultur|extract|obtain|acquir|buy|purchas|order|smuggl|assembl|"
         r"cook|grow|spread|releas|plant|steal|get|weaponi[sz]|modif|develop|stor|set(?:ting)? off|devis|start)\w*")
_WRITE = (r"(?:writ|creat|generat|compos|giv|mak|draft|tell|develop|provid|com(?:e|ing) up|post|produc|design|describ|"
          r"explain)\w*")
_HOW = (r"(?:how|instruct\w*|steps?|step-by-step|guide|tutorial|ways?|methods?|tips?|advice|plan|script|code|payload|"
        r"techniques?|best)")
_UNSEEN = (r"(?:without (?:getting |being |leaving |arousing )?(?:caught|detect\w*|traced?|a trace|suspicion|noticed|"
           r"permission|authorization|consent|them knowing)|undetected|untraceable|illegal(?:ly)?|unlawful(?:ly)?|"
           r"evad\w+ (?:the )?(?:law|police|detection|taxes|tracing))")
_PERSON = (r"(?:someone|somebody|people|persons?|child\w*|wife|husband|spouse|patient|girls?|women|colleague|coworker|"
           r"classmate|student|secretary|victims?|neighbou?rs?|politician|president)")
RULES: dict[str, tuple[str, ...]] = {
    "weapons": (
        _near(_MAKE, "bombs?", "explosives?", "grenades?", r"molotov\w*", "napalm", "landmines?", "silencers?", "ghost guns?",
              "nerve (?:gas|agents?)", "(?:chemical|biological|nuclear|warfare) (?:weapons?|agents?|warfare)", "sarin",
              "tabun", "vx gas", "mustard gas", "lewisite", "ricin", "anthrax", r"botulin\w*", "tetrodotoxin", "strychnine",
              "parathion", "chlorine gas", "dimethylmercury", "toxins?", "ebola", "enriched uranium", "smallpox"),
        _near("bombs?|explosives?|nerve agents?|ricin|anthrax|sarin|biohazards?", "at home", "household", "security", "threat"),
        r"\b(?:chemical|biological) weapons? could be made", _near(r"poison\w*|tamper\w*|contaminat\w*", "water supply"),
    ),
    "drugs": (
        _near(_MAKE, "meth(?:amphetamine)?", "mdma", "ecstasy", "heroin", "cocaine", "fentanyl", "lsd", "ghb", "nitazenes?",
              "illegal drugs"),
        _near(r"forg\w+|fak\w+", "prescriptions?"), _near(r"(?:start|try|begin)\w*", "drugs", r"huff\w* paint"),
    ),
    "cybercrime": (
        _near(r"(?:hack|crack|exploit|hijack|infiltrat|compromis|ddos|deface|bypass|intercept)\w*", "accounts?", "emails?",
              "passwords?", "wi-?fi", "networks?", "systems?", "servers?", "websites?", "databases?", "computers?", "phones?",
              "atms?", "machines?", "webcams?", "cards?", "drones?", r"vulnerab\w+"),
        _near(f"{_WRITE}|{_HOW}", "malware", "ransomware", "key ?loggers?", "trojans?",
              "(?:computer )?(?:virus|worms?) that", "spyware", "botnets?", "rootkits?", "ddos", "reverse shells?",
              "sql injection", "exploits?", "zero-days?",
              "flood attack", "brute[- ]force"),
        _near(r"(?:steal|exfiltrat|harvest|corrupt|encrypt)\w*", "passwords?", "credentials", "hard drives?",
              "user's (?:files|computer)"),
    ),
    "fraud": (
        _near(f"{_WRITE}|{_HOW}", "phishing", "scams?", "fraud", r"counterfeit\w*", "ponzi", r"skimm\w+", r"money launder\w*",
              "identity theft", "fake (?:ids?|passports?|documents?|reviews?|invoices?|bank)", "insider trading"),
        _near(r"(?:forge|forging|counterfeit|launder)\w*", "documents?", "currency", "money", "signatures?", "passports?",
              "cash"),
        r"\bstolen (?:credit|card|identit)", r"\bconvinc\w+ [^.?!\n]{0,30}social security number",
    ),
    "crime": (
        _near(r"steal|rob|robbing|shoplift\w*|burglar\w*|kidnap\w*|blackmail\w*|extort\w*|brib\w*|smuggl\w*|traffic\w*|poach\w*|"
              r"break into|hotwir\w*|stalk\w*", _PERSON, "banks?", "cars?", "houses?", "cash", "goods", "organs?", "ivory",
              "food", _UNSEEN),
        _near(_HOW, _UNSEEN), _near(_UNSEEN, "handguns?", "guns?", "brothels?"),
        r"\b(?:hit ?m[ae]n|chop shops?|black market|human trafficking|ransom note|tax fraud|illegal brothel|swatt?ing|arson)\b",
    ),
    "violence": (
        _near(f"{_HOW}|{_WRITE}",
              r"(?:kill|murder|assassinat|poison|strangl|tortur|attack|hurt|harm|assault|rap(?:e|ing)|abus)\w*"
              rf"\b[^.?!\n]{{0,30}}\b(?:{_PERSON}|pets?|animals?|my|your|him|her|them|patients?)"),
        r"\b(?:bomb|death) threats?\b", r"\bmass (?:shooting|murder)\b",
    ),
    "self_harm": (
        _near(rf"{_HOW}|convinc\w*|encourag\w*|promot\w*|glorif\w*|{_WRITE}", "suicide", r"kill (?:myself|yourself|themsel\w+)",
              "self[- ]harm", "cut(?:ting)? (?:myself|yourself)", "anorexia", "bulimia", r"overdos\w+"),
    ),
    "hate_and_harassment": (
        _near(rf"{_WRITE}|glorif\w*|prais\w*", "racist", "sexist", "homophobic", "antisemitic", "hate(?:ful)?", "slurs?",
              "vitriol", r"harass\w*", "bull(?:y|ies|ying)", "nazis?", "holocaust (?:never|denial)", "genocide"),
        _near(r"(?:insult|mock|humiliat|harass|bully|threaten|gaslight|intimidat|coerc|pressur|discriminat)\w*", _PERSON),
        _near("women|blacks|jews|muslims|immigrants|disabled people|people with disabilities", "less intelligent", "inferior",
              "burden", "stupid", "terrorists"),
    ),
    "disinformation": (
        _near(rf"{_WRITE}|persua\w+|convinc\w*|argu\w+|suggest\w*", "fake news", "disinformation", "conspiracy", "hoax",
              "(?:holocaust|moon landing) never happened", "vaccines? (?:cause|are dangerous)", "5g causes", "rigged",
              "stolen election", r"defam\w+", "drink bleach"),
    ),
    "privacy": (
        _near(r"(?:find|get|obtain|track|spy|access|read|reveal|give me)\w*", "home address", "phone number",
              "private (?:messages?|medical|records|data|photos?)", "medical records",
              "someone's (?:messages|location|password)"),
    ),
}
WORD = re.compile(r"[a-z][a-z-]*")
UNSAFE = {category: re.compile("|".join(rules), re.IGNORECASE) for category, rules in RULES.items()}
PROTECTIVE = re.compile(
    r"\b(?:prevent|protect|avoid|notic(?:e|ing)|detect(?:ing)? (?:a|an|it)|recogni[sz]|identif|defend|report|"
    r"secure (?:a|my|your|our)|"
    r"mitigat|aware|against (?:phishing|scams?|fraud|malware|attacks?|bully)|victim of|history of|causes of|consequences of|"
    r"penalt|(?:dangers?|risks?|signs?|symptoms|effects) of|support (?:for|someone)|overcome|recover)", re.IGNORECASE)
"""Who asks how to keep safe from it, or what it is, asks for something else."""


_WORDS = """
    bomb explosive grenade molotov napalm landmine silencer ghost nerve chemical biological nuclear warfare sarin tabun
    gas mustard lewisite ricin anthrax tamper contaminate botulinum tetrodotoxin strychnine parathion chlorine
    dimethylmercury toxin ebola uranium smallpox biohazard methamphetamine meth mdma ecstasy heroin cocaine fentanyl lsd
    ghb nitazene drugs prescription huff paint hack crack exploit hijack infiltrate compromise ddos deface bypass
    intercept malware ransomware key keylogger trojan virus worm spyware botnet rootkit reverse sql zero-day flood brute
    steal exfiltrate harvest corrupt encrypt phishing scam fraud counterfeit ponzi skimming money identity fake insider
    forge forging launder stolen social rob robbing shoplift burglar kidnap blackmail extort bribe smuggle traffic poach
    break hotwire stalk hitman hit chop black human ransom tax illegal swatting swat arson caught detected traced trace
    suspicion noticed permission authorization consent knowing knowledge undetected untraceable unlawful evade evading
    kill murder assassinate poison strangle torture attack hurt harm assault rape raping abuse death mass suicide self
    cut cutting anorexia bulimia overdose racist sexist homophobic antisemitic hate hateful slur vitriol harass bully
    bullies nazi holocaust genocide insult mock humiliate threaten gaslight intimidate coerce pressure discriminate
    intelligent inferior burden stupid terrorist news disinformation conspiracy hoax moon vaccine causes rigged election
    defame defamatory drink home phone private medical messages location password
"""
STEMS = frozenset(word[:4] for word in _WORDS.split())
"""The first four letters of words without which no rule can match. Most prompts have none, and are done after this look."""


def unsafe(prompt: str) -> str | None:
    """The first category whose rules find the prompt, or None."""
    text = prompt[:LOOKED_AT].replace("\u2019", "'")
    if STEMS.isdisjoint(word[:4] for word in WORD.findall(text.lower())):
        return None
    found = next((category for category, rule in UNSAFE.items() if rule.search(text)), None)
    return None if found and PROTECTIVE.search(text) else found
