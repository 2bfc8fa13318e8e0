"""Short texts of which no two are near-duplicates."""

WORDS = "amber birch cobalt dune ember fjord garnet harbor indigo jasper kelp lotus maple nectar onyx pearl"
TOPICS = WORDS.split()


def distinct_texts(count: int) -> list[str]:
    return [f"the {TOPICS[n % 16]} parcel {n * 7919} is {TOPICS[(n * 5 + n // 16) % 16]} today" for n in range(count)]
