"""The words of the synthetic purchase documents: names, goods, and the names of the fields.

The companies, streets and people do not exist: a name is an invented stem and a trade.
"""

# fmt: off

STEMS = (
    "Aldrow", "Bramwick", "Cresfold", "Dorvane", "Elswith", "Fenmarsh", "Garvell", "Hestrel", "Ivermoor", "Jorwell",
    "Kelbrant", "Lorimond", "Marlend", "Nordane", "Ostrelby", "Pellworth", "Quenfield", "Rosdale", "Sandrick", "Tolmar",
    "Ulverton", "Vantross", "Wexmoor", "Yarlow", "Zellmark", "Brentholl", "Colmere", "Darvold", "Ettrall", "Farlane",
    "Grenholt", "Harwold", "Kestrand", "Langmere", "Morfield", "Norvick", "Oakrell", "Penrell", "Ravendale", "Stanvick",
)
TRADES = (
    "Timber", "Paper", "Tools", "Lighting", "Foods", "Cables", "Pumps", "Glass", "Textiles", "Bearings", "Packaging",
    "Paints", "Metals", "Stationery", "Bakery", "Flooring",
)
COMPANY_SUFFIXES = ("", "", "", " Ltd", " GmbH", " Inc", " and Sons", " Trading", " Supplies")
BUYERS = (
    "Hotel Miravel", "Clinic Sundholt", "Café Lindenau", "School of Tarnby", "Museum Ostvik", "Garage Felden",
    "Studio Marisol", "Bistro Calluna", "Theatre Rondell", "Harbour Office Selm", "Library Westrup", "Farm Solbakken",
)
PEOPLE = ("Anna Reim", "Jon Tarvik", "Mira Solde", "Peter Askam", "Lea Brunt", "Samir Dell", "Ruth Ostrom", "Kai Venn")
STREETS = ("Mill Lane", "Station Road", "Harbour Street", "Long Acre", "North Quay", "Market Square", "Bridge Street")
TOWNS = ("Tarnby", "Selm", "Ostvik", "Felden", "Westrup", "Rondell", "Calder", "Lindau")
GOODS = (
    "steel hinges", "paper rolls", "desk lamps", "work gloves", "door handles", "cable drums", "oak boards", "paint",
    "hand soap", "coffee beans", "tea boxes", "water filters", "floor tiles", "screws", "envelopes", "folding chairs",
    "towels", "bread rolls", "copper pipes", "light bulbs", "cotton sheets", "glass jars", "labels", "batteries",
)

TITLES = {
    "invoice": ("Invoice", "Tax invoice", "INVOICE", "Bill", "Sales invoice"),
    "order": ("Purchase order", "Order", "PURCHASE ORDER", "Order form", "Our order"),
}
NUMBER = {
    "invoice": ("Invoice no.", "Invoice number", "Invoice #", "No.", "Document no."),
    "order": ("Order no.", "PO number", "Order number", "PO #", "No."),
}
DATE = {
    "invoice": ("Date", "Invoice date", "Issued", "Date of issue"),
    "order": ("Date", "Order date", "Ordered on", "Date of order"),
}
DUE = ("Due date", "Payment due", "Pay by", "Due", "Payable until")
TOTAL = {
    "invoice": ("Total", "Total due", "Amount due", "Grand total", "To pay", "TOTAL"),
    "order": ("Total", "Order total", "Total value", "Grand total", "TOTAL"),
}
SUBTOTAL = ("Subtotal", "Net", "Goods", "Sum of items")
TAX = ("VAT", "Tax", "Sales tax", "VAT 20%")
SUPPLIER = ("Supplier", "Seller", "Vendor", "Sold by")
BUYER = ("Bill to", "Customer", "Ship to", "Deliver to", "Buyer")
# Numbers and dates that are not requested.
OTHER_NUMBERS = ("Customer no.", "Our ref.", "VAT ID", "Phone", "Account")
OTHER_DATES = ("Delivery date", "Shipped", "Printed", "Delivered on", "Valid until")
CLOSINGS = ("Thank you for your business", "Goods remain ours until paid", "Please quote the number", "Page 1 of 1",
            "No signature needed", "E. and O. E.")  # fmt: skip

GREETINGS = ("Hello,", "Dear team,", "Good morning,", "Hi,", "Dear customer service,")
SIGN_OFFS = ("Kind regards", "Best regards", "Thanks", "Many thanks")
OPENINGS = {
    "invoice": ("please find our invoice{number}{date} for {goods}.", "we bill you for {goods}: invoice{number}{date}.",
                "this is invoice{number}{date}, for {goods}.", "attached is the invoice{number}{date} for {goods}."),
    "order": ("we would like to order {goods}, order{number}{date}.", "send us {goods}, please: order{number}{date}.",
              "this is our order{number}{date} for {goods}.", "please book order{number}{date}: {goods}."),
}  # fmt: skip
SUMS = ("The total is {total}", "It comes to {total} with tax", "That makes {total} in all", "Total: {total}")
NET_FIRST = ("Net it is {subtotal}.", "The goods alone are {subtotal}.", "Before tax that is {subtotal}.")
TERMS = (", payable by {due}.", ", due on {due}.", ". Please pay by {due}.", ". We ask for payment until {due}.")
ASIDES = ("Delivery is planned for {other_date}.", "Your last order was of {other_date}.", "We talked on {other_date}.",
          "Any question? Call {other_number}.", "Our customer number is {other_number}.")  # fmt: skip
