"""Which jobs an API key sees: all of them, or those of its owner."""

from uuid import UUID

from jobs.clients.keys import Client, KeyScope
from jobs.settings import Settings


def find_visible(client: Client | None, settings: Settings) -> UUID | None:
    """The owner of the jobs that a client may see and cancel; None for all jobs, as without keys.

    A `read` key makes no jobs. Created for another key it sees that one's; otherwise the setting decides.
    """
    if client is None or client.scope is KeyScope.ADMIN:
        return None
    is_for_another = client.owner_id != client.key_id
    if client.scope is KeyScope.READ:
        sees_all = settings.read_keys_see == "all" and not is_for_another
    else:
        sees_all = settings.submit_keys_see == "all"
    return None if sees_all else client.owner_id
