#!/usr/bin/env python3
"""Writes short news notes of four topics, and questions of four kinds, by templates.

    python3 dev/topics.py DIR

    plain.txt, plain_val.txt             notes without labels, for pretraining: 20,000 and 1,000
    topics.tsv, topics_test.tsv          notes; the label is the topic, 4 : 3 : 2 : 1
    questions.tsv, questions_test.tsv    questions; the label is what is asked for

Half of the plain notes end by naming their topic ("Read more about sport."), as newspapers do; no
labelled note does. Questions stand in plain notes, too, with their answers, but no text ever says
what kind of question one is. dev/topics.sh asks a language model for topics and kinds.
"""
import os
import random
import sys

NAMES = ["Anna", "Boris", "Carla", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jonas"]
DAYS = ["on Monday", "on Friday", "yesterday", "last week", "in April", "at noon", "this winter"]
TOWNS = ["Bergen", "Cork", "Dover", "Graz", "Lyon", "Malmo", "Porto", "Turin", "Utrecht", "Vigo"]
TOPICS = {      # weight; who, what they did, and the things of it: the last three are two topics'
    "sport": (4, "keeper striker coach referee sprinter swimmer boxer cyclist rower skater",
              "won lost missed played trained celebrated postponed",
              "cup penalty final relay medal league marathon derby stadium helmet "
              "match record field"),
    "business": (3, "banker broker manager trader dealer lender clerk cashier baker landlord",
                 "sold bought financed closed insured exported priced",
                 "loan merger factory budget tax contract tender salary bond warehouse "
                 "market record share"),
    "science": (2, "chemist biologist professor doctor surgeon geologist student physicist nurse",
                "measured discovered tested observed published proved copied",
                "molecule virus telescope fossil laser theory cell vaccine planet microscope "
                "field match chart"),
    "travel": (1, "tourist pilot guide sailor captain hiker driver porter steward camper",
               "visited booked reached crossed photographed left recommended",
               "beach hotel river ferry museum passport desert harbour temple train "
               "market chart share"),
}
SENTENCES = [
    "The {who} {did} the {thing} {day}.", "{name}, a {who}, spoke of the {thing}.",
    "Nobody had expected a {thing}, said the {who}.", "In {town} a {who} {did} the {thing}.",
    "After the {thing} came a {thing}.", "For the {who} it was the first {thing}.",
    "Every {who} wants a {thing}.", "{name} {did} it {day}, like any {who}.",
]
NEUTRAL = [
    "It was a good day for {name}.", "For some reason nobody was told.", "A person was hurt {day}.",
    "There is no better place than {town}.", "This takes time.", "{name} and {name} came, too.",
]
QUESTIONS = {   # templates of the question; then of the answer
    "person": (["Who {did} the {thing}?", "Which {who} {did} it {day}?", "Who was the {who}?",
                "Whose was the {thing}?"], "{name}."),
    "place": (["Where was the {thing}?", "In which town is the {who}?", "Where did {name} go {day}?",
               "Near which town was the {thing}?"], "Near {town}."),
    "time": (["When was the {thing}?", "On which day did {name} go?", "When will the {who} speak?",
              "Since when is {name} a {who}?"], "Probably {day}."),
    "reason": (["Why was there a {thing}?", "What made the {who} leave {town}?",
                "Why is {name} a {who}?", "What is the {thing} good for?"], "Because of the {who}."),
}


def fill(template, topic, source):
    _, who, did, things = TOPICS[topic]
    choices = {"who": who.split(), "did": did.split(), "thing": things.split(), "name": NAMES,
               "day": DAYS, "town": TOWNS}
    for slot, values in choices.items():
        while "{" + slot + "}" in template:
            template = template.replace("{" + slot + "}", source.choice(values), 1)
    return template


def draw_topic(source):
    return source.choices(list(TOPICS), [weight for weight, *_ in TOPICS.values()])[0]


def question(source, topic):
    """A question about a topic, its kind, and its answer."""
    kind = source.choice(list(QUESTIONS))
    templates, answer = QUESTIONS[kind]
    return fill(source.choice(templates), topic, source), kind, fill(answer, topic, source)


def note(source, topic):
    """Two to four sentences; one in four is neutral, one in six of another topic."""
    sentences = []
    for _ in range(source.randint(2, 4)):
        x = source.random()
        other = draw_topic(source) if x > 5 / 6 else topic
        sentences.append(fill(source.choice(NEUTRAL if x < 1 / 4 else SENTENCES), other, source))
    return sentences


def plain(source):
    topic = draw_topic(source)
    sentences = note(source, topic)
    if source.random() < 0.3:
        asked, _, answer = question(source, topic)
        sentences = [asked, answer] + sentences
    if source.random() < 0.5:
        sentences.append(f"Read more about {topic}.")
    return " ".join(sentences)


def topic_row(source):
    topic = draw_topic(source)
    return topic + "\t" + " ".join(note(source, topic))


def question_row(source):
    asked, kind, _ = question(source, draw_topic(source))
    return kind + "\t" + asked


def main():
    directory = sys.argv[1]
    os.makedirs(directory, exist_ok=True)
    files = [("plain.txt", plain, 20000), ("plain_val.txt", plain, 1000),
             ("topics.tsv", topic_row, 1000), ("topics_test.tsv", topic_row, 1000),
             ("questions.tsv", question_row, 1000), ("questions_test.tsv", question_row, 1000)]
    for seed, (name, make, count) in enumerate(files):
        source = random.Random(seed)
        with open(os.path.join(directory, name), "w", encoding="utf-8") as f:
            f.write("label\ttext\n" if name.endswith("tsv") else "")
            f.writelines(make(source) + "\n" for _ in range(count))


if __name__ == "__main__":
    main()
