"""A relay that runs: what holds of it, and what its operators' port says."""
import urllib.error
import urllib.request

ANSWER_SECS = 30


class Failed(Exception):
    """Something that must hold does not."""


def check(holds, what):
    if not holds:
        raise Failed(f"does not hold: {what}")


class Running:
    """Has a `process`, and an `http_port` on 127.0.0.1."""

    def is_alive(self):
        code = self.process.poll()
        if code is not None:
            raise Failed(f"the relay ended by itself with exit code {code}")
        return True

    def get(self, path):
        """Status and text; (0, "") while nobody answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.http_port}{path}", timeout=ANSWER_SECS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name):
        """The value of the series with this name, labels included; None when there is none."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return None
