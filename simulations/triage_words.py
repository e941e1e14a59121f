"""The words that synthetic triage notes are put together from. Invented; no patient stands behind any of them."""

from __future__ import annotations

from collections.abc import Mapping

CATEGORIES = ("immediate", "urgent", "soon", "routine")
"""Triage categories, most pressing first. Neighbours in this order are what nurses confuse."""

COMPLAINTS: Mapping[str, tuple[str, ...]] = {
    "chest": ("chest pain", "tightness across the chest", "palpitations", "pressure behind the breastbone"),
    "breathing": ("shortness of breath", "wheezing", "a productive cough", "noisy breathing"),
    "abdomen": ("abdominal pain", "vomiting", "pain in the right flank", "bloating and cramps"),
    "head": ("headache", "dizziness", "a blow to the head", "blurred vision"),
    "limb": ("a painful ankle", "a swollen wrist", "a laceration of the hand", "hip pain after a fall"),
    "skin": ("a rash", "a swollen red calf", "hives", "an infected wound"),
    "fever": ("fever", "chills", "a sore throat", "general weakness"),
    "mind": ("low mood", "agitation", "confusion", "panic attacks"),
}
"""Presenting complaints; every one of them occurs in every category."""

AFFINITY: Mapping[str, tuple[float, float, float, float]] = {
    "chest": (3.0, 3.0, 1.0, 0.6),
    "breathing": (3.0, 2.0, 1.2, 0.8),
    "abdomen": (1.0, 2.0, 2.0, 1.0),
    "head": (1.5, 1.5, 1.5, 1.0),
    "limb": (0.5, 1.0, 2.5, 2.5),
    "skin": (0.6, 1.0, 1.5, 3.0),
    "fever": (0.8, 1.5, 2.0, 2.5),
    "mind": (1.0, 1.5, 1.2, 1.5),
}
"""How readily a complaint turns up in each category, in the order of `CATEGORIES`."""

SIGNS: Mapping[str, tuple[str, ...]] = {
    "immediate": (
        "unresponsive to voice",
        "systolic pressure 70 and falling",
        "oxygen saturation 79 on room air",
        "lips are blue",
        "seizing on arrival",
        "no palpable radial pulse",
        "gasping, unable to speak",
        "massive bleeding through the dressing",
        "skin grey and clammy, barely rousable",
    ),
    "urgent": (
        "pain nine out of ten, radiating to the arm",
        "heart rate 128, sweating",
        "saturation 91, speaks in short phrases",
        "new weakness of the left side since this morning",
        "rigid abdomen, guarding",
        "drowsy but answers questions",
        "temperature 40.1 with neck stiffness",
        "blood in the vomit twice today",
        "foot is pale with a weak pulse",
    ),
    "soon": (
        "pain six out of ten, steady since yesterday",
        "temperature 38.6, drinking little",
        "needs stitches, bleeding controlled",
        "cannot bear weight, no deformity",
        "vomited four times, mucous membranes dry",
        "tender on palpation, no guarding",
        "heart rate 102, otherwise stable",
        "swelling increased over two days",
        "x-ray needed, distal pulses present",
    ),
    "routine": (
        "present for three weeks, unchanged",
        "asks for a repeat prescription",
        "walks unaided, vital signs normal",
        "pain two out of ten, took nothing for it",
        "wants a certificate",
        "mild, eating and drinking normally",
        "dressing change requested",
        "follow-up of earlier visit, improving",
        "afebrile, playing and smiling",
    ),
}
"""Findings that tell the category."""

VAGUE: tuple[tuple[str, ...], ...] = (
    ("looks very unwell", "family says much worse than usual", "not right since the night", "deteriorating they say"),
    ("feels quite poorly", "uncomfortable, wants to be seen", "has been getting worse", "tired and worried"),
    ("some discomfort", "not quite himself for some days", "comes and goes", "unsure when it began"),
)
"""Findings that leave open which of two neighbouring categories it is: entry i fits categories i and i + 1."""

CONTEXT: tuple[str, ...] = (
    "known diabetes",
    "on blood thinners",
    "history of asthma",
    "takes regular medication",
    "no known allergies",
    "allergic to penicillin",
    "relatives informed",
    "brought by a relative",
    "came by ambulance",
    "walked in",
    "last meal four hours ago",
    "had surgery last spring",
    "interpreter needed",
    "seen here before",
    "similar episode a year ago",
    "vaccinations complete",
    "recently back from travel",
    "referred by the pharmacy",
    "chronic kidney disease",
    "took paracetamol at home",
)
"""Remarks that say nothing about the category."""

SHORTHAND: tuple[tuple[str, str], ...] = (
    ("chest pain", "CP"),
    ("shortness of breath", "SOB"),
    ("abdominal pain", "abdo pn"),
    ("oxygen saturation", "SpO2"),
    ("saturation", "sats"),
    ("heart rate", "HR"),
    ("temperature", "T"),
    ("systolic pressure", "SBP"),
    ("pressure", "BP"),
    ("headache", "HA"),
    ("vomiting", "N+V"),
    ("vomited", "vom"),
    ("history of", "hx"),
    ("known", "k/c"),
    ("brought by", "b/b"),
    ("years old", "y"),
    ("year-old", "yo"),
    ("out of ten", "/10"),
    ("vital signs normal", "obs nil"),
    ("follow-up", "f/u"),
    ("prescription", "Rx"),
    ("no known allergies", "NKDA"),
    ("on blood thinners", "anticoag"),
    ("since yesterday", "1/7"),
    ("three weeks", "3/52"),
    ("unresponsive to voice", "V- on AVPU"),
    ("drowsy", "GCS 13"),
    ("laceration", "lac"),
    ("bleeding", "bldg"),
    ("unable to speak", "no words"),
    ("breathing", "resps"),
)
"""What a hospital that writes in shorthand puts instead, longest forms first where one contains another."""
