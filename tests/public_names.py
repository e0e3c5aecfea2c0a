"""What kdrop offers to its users."""

import inspect

import kdrop
import kdrop.serving


def public_objects():
    """Each public class and function by its name."""
    objects = {f"kdrop.{name}": getattr(kdrop, name) for name in kdrop.__all__}
    for name, module in list(objects.items()):
        if inspect.ismodule(module):
            del objects[name]
            for inner, value in vars(module).items():
                origin = str(getattr(value, "__module__", ""))
                public = origin.startswith(module.__name__) and inner[0] != "_"
                if callable(value) and public:
                    objects[f"{name}.{inner}"] = value
    return {**objects, "kdrop.serving.export": kdrop.serving.export}


OBJECTS = public_objects()
