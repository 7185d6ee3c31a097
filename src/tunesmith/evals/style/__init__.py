"""Whether a tuned model writes like its author: profile, distances, two-sample test, copy check, blind votes.

    text       words, and cutting two texts to the same length
    profile    a passage -> counts; sums of counts -> numbers of a style
    distance   how far two texts are, with intervals, beside the author against himself
    twosample  whether a classifier can tell an output from the author
    copying    what of an output stands word for word in the training text
    measure    all of it for one run: `report["style"]`
    view       the section of the report
    ballot     the blind page, and reading votes back
"""
