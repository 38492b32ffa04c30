"""Runs in the submission's process: calls decide with a situation that stays the same object from call to call."""
import copy
import sys


def call_and_compare(situation):
    """Whether decide left the situation as it was, and the rule of each candidate that fell when it is asked twice."""
    before, order = copy.deepcopy(situation), list(situation["candidates"])
    decide = sys.modules["submission"].decide
    first, second = decide(situation), decide(situation)
    return situation == before and list(situation["candidates"]) == order, first == second


def change_and_ask(situation, changes):
    """The answers for one dict that is changed between calls: changes is a list of {key: value}."""
    answers = []
    for change in changes:
        situation.update(change)
        answers.append(sys.modules["submission"].decide(situation))
    return answers
