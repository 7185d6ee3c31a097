"""Recipes from the YAML files of other tools: axolotl and LLaMA-Factory.

Every key of the source ends in exactly one list: `mapped` (a recipe says the same), `unsupported` (it does not, and what
to do), or `ignored` (it would change nothing here, and why). What a tool does when a key is missing is written into the
recipe too, since its defaults are not ours.

    read        the file, its lines, which tool wrote it
    rules       what a table can say about a key; ledger keeps the three lists
    axolotl*    its tables, and what takes several keys at once; llamafactory* the same
    shared      what both inherit from transformers' trainer
    write       the recipe's text, each value with the key it came from
"""
