"""Advantages in trees, of segments and of exits, by loops over sets of rows."""

import numpy as np


def tree_advantage(texts, rewards, groups, kind, present):
    """Of each row and token by the sets of rows that share the beginning."""
    found = []
    nodes_of = {}
    for row, text in enumerate(texts):
        mates = [other for other in range(len(texts)) if groups[other] == groups[row] and present[other]]
        way = [frozenset(mates)]
        per_token = []
        for place in range(len(text)):
            here = frozenset(other for other in mates if texts[other][: place + 1] == text[: place + 1])
            if here != way[-1]:
                way.append(here)
            per_token.append(len(way) - 1)
        found.append((way, per_token))
        if present[row]:
            for depth in set(per_token):
                nodes_of.setdefault((groups[row], depth), set()).add(way[depth])
    value = {node: np.mean([rewards[row] for row in node]) for way, _ in found for node in way if node}
    result = [[0.0] * len(text) for text in texts]
    for row, (way, per_token) in enumerate(found):
        if not present[row]:
            continue
        size = len(way[0])
        for place, depth in enumerate(per_token):
            own, root = value[way[depth]], value[way[0]]
            parent = value[way[depth - 1]] if depth else root
            if kind == "parent":
                result[row][place] = own - parent
            elif kind == "global_and_local":
                result[row][place] = (
                    (own - root + own - parent) / np.sqrt(len(way[depth])) * (size / (size - 1) if size > 1 else 0)
                )
            elif kind == "ancestors":
                seen = [node for number, node in enumerate(way) if number == 0 or len(node) > 1]
                total = sum(len(node) * (rewards[row] - value[node]) for node in seen)
                result[row][place] = total / sum(len(node) for node in seen)
            else:
                nodes = [value[node] for node in nodes_of[groups[row], depth]]
                result[row][place] = (own - np.mean(nodes)) / (np.std(nodes) + 1e-6)
    return result


def segment_advantage(before, behind, mask, probability, below=None):
    """Of each token the difference of the values at both ends of its segment; none for tokens that are likely."""
    found = np.zeros(np.shape(before))
    for row, column in np.ndindex(found.shape):
        if mask[row][column] and (below is None or probability[row][column] < below):
            found[row, column] = behind[row][column] - before[row][column]
    return found


def exit_rewards(right, cut, group):
    """1 for the first right exit of a group, half as much for each one behind it, 0 for wrong ones."""
    found = [0.0] * len(right)
    for number in set(group):
        reward = 1.0
        for row in sorted((row for row in range(len(right)) if group[row] == number), key=lambda row: cut[row]):
            if right[row]:
                found[row], reward = reward, reward / 2
    return found
