"""What people answer, as labelling tools export it."""


def answered(tasks, *choices):
    """Tasks as Label Studio exports them once people have answered: JSON."""
    out = []
    for number, (task, given) in enumerate(zip(tasks, choices, strict=True), start=1):
        annotations = [
            {
                "id": 10 * number + i,
                "completed_by": {"id": i, "email": f"{i}@x.org"},
                "was_cancelled": False,
                "result": [
                    {
                        "id": "r",
                        "type": "choices",
                        "from_name": "choice",
                        "to_name": "image",
                        "value": {"choices": [choice]},
                    }
                ],
            }
            for i, choice in enumerate(given)
        ]
        out.append({"id": number, "data": task["data"], "annotations": annotations})
    return out
