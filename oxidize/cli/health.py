"""To be merged."""

import http.client


def why_unready(address: str, timeout_secs: float) -> str:
    """To be merged."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_secs)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body = response.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"http://{address} does not answer: {error}"
    finally:
        connection.close()
    return "" if response.status == http.client.OK else f"{response.status} {' '.join(body.split())}"
