"""How everything under data/ was made, from seeds and word lists alone.

    words, glossary      what there is to talk about
    town                 a simulated town whose state each sentence changes
    corpus               documents that tell of it, ask, and know the answers
    tokenizer            byte-level BPE, trained on documents     -> data/town/tokenizer.json
    skills               the evaluation                           -> data/eval/skills.jsonl
    train                the models, trained on documents         -> data/town, data/town-draft
    readme               sizes, sha256, samples and scores        -> data/README.md

Each of the last four is run as `python -m data.build.NAME` from the root of the repository.
"""
