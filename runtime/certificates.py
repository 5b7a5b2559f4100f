"""The daemon's certificate, read anew when its files change: no restart, no dropped connection."""

import logging

import grpc

from foremoe.errors import InvalidInputError
from foremoe.rpc.credentials import Credentials, TlsPem

log = logging.getLogger(__name__)


class ServerCertificate:
    """Asked at every handshake; files that cannot be used leave the last good ones in force."""

    def __init__(self, credentials: Credentials, pem: TlsPem) -> None:
        self._credentials = credentials
        self._first = pem
        self._stamp = credentials.stamp()

    def server_credentials(self) -> grpc.ServerCredentials:
        """For ports that demand a client certificate signed by one of the authorities."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._first),
            self._fetch,  # type: ignore[arg-type]  # the stubs know of no None, gRPC does
            require_client_authentication=True,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What replaces the certificate, None for nothing; called on gRPC's threads."""
        stamp = self._credentials.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            pem = self._credentials.read_tls()
        except InvalidInputError as error:
            log.warning("TLS goes on with the files read before: %s", error)
            return None
        assert pem is not None
        log.info("TLS goes on with the files as they are now")
        return _configuration(pem)


def _configuration(pem: TlsPem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.ca)
