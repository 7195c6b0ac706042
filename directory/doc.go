// Package directory holds the documents from which a client learns about relays: descriptors (a relay about itself), votes
// (an authority about all relays), ballots (who knows of which vote), the consensus (what the authorities agree on), and the network file that names the
// authorities. It is pure: documents are signed, parsed, verified and computed here, and fetched elsewhere.
//
// # Format
//
// Every document is one array in deterministic CBOR (RFC 8949 section 4.2.1):
//
//	[ kind (text), body (byte string), signatures [ [ certificate (146), signature (64) ], … ] ]
//
// The body is itself CBOR. A signature is made by the key that the certificate names, for the purpose of the kind, over
// kind || SHA-256(body), for the consensus over kind || space || period in decimal || SHA-256(body), and for a vote over
// kind || space || network || space || period in decimal || SHA-256(body). The certificate names the signer; signatures are sorted by it. Parsers are strict: what they accept is exactly what this package
// would write again (they do write it again and compare), so a document has one form, and nothing can hide in it.
//
// Times are whole Unix seconds, rates are KB/s (1 KB = 1000 bytes).
//
// # Periods
//
// Time is cut into periods of Network.Interval since the Unix epoch. The consensus of period p is valid from the start of
// p, fresh until the start of p+1, and valid until the start of p+ValidPeriods.
package directory
