import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Server } from 'node:http';
import { createSecureContext, type SecureContextOptions, Server as TlsServer } from 'node:tls';
import type { Logger } from 'pino';
import { StartError } from './core.ts';

export interface CertificateFiles {
  readonly certFile: string;
  readonly keyFile: string;
}

/** A certificate that can be served, as Node takes it. */
export interface Certificate {
  readonly context: SecureContextOptions;
  /** For the log: which one it is, by whom, and how long it is good. */
  readonly description: { readonly subject: string; readonly serial: string; readonly valid_to: string };
}

/**
 * Reads the certificate and its key, and makes sure that they can be served: a file that is half written must not
 * take the place of one that works.
 *
 * @throws StartError
 */
export function readCertificate({ certFile, keyFile }: CertificateFiles): Certificate {
  const cert = readSetting('TLS_CERT_FILE', certFile);
  const key = readSetting('TLS_KEY_FILE', keyFile);
  const leaf = parsed(() => new X509Certificate(cert), 'TLS_CERT_FILE holds no certificate in PEM');
  const privateKey: KeyObject = parsed(
    () => createPrivateKey(key),
    'TLS_KEY_FILE holds no private key in PEM, or an encrypted one',
  );
  if (!leaf.checkPrivateKey(privateKey))
    throw new StartError('TLS_KEY_FILE is not the key of the certificate in TLS_CERT_FILE.');
  const context: SecureContextOptions = { cert, key, minVersion: 'TLSv1.2' };
  parsed(() => createSecureContext(context), 'TLS_CERT_FILE and TLS_KEY_FILE cannot be served');
  const { subject, serialNumber: serial, validTo: valid_to } = leaf;
  return { context, description: { subject, serial, valid_to } };
}

/**
 * Reads the certificate again on SIGHUP. Connections go on as they are; new ones get the new certificate. One that
 * cannot be served leaves the former in place.
 */
export function rereadOnHangup(server: Server, files: CertificateFiles, logger: Logger): void {
  process.on('SIGHUP', () => {
    try {
      const { context, description } = readCertificate(files);
      if (server instanceof TlsServer) server.setSecureContext(context);
      logger.info({ certificate: description }, 'the certificate was read again');
    } catch (err) {
      logger.error({ err }, 'the certificate could not be read again; the former one stays');
    }
  });
}

function readSetting(name: string, path: string): Buffer {
  return parsed(() => readFileSync(path), `${name} cannot be read`);
}

/** What OpenSSL says of a file tells an operator little; its code is there to be looked up. */
function parsed<T>(parse: () => T, fault: string): T {
  try {
    return parse();
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? ` (${cause.code})` : '';
    throw new StartError(`${fault}${code}.`, { cause });
  }
}
